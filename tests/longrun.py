"""A small fastai run with randomness in every corner, and a fingerprint of all that it leaves behind. Used by the tests of `Resume`, and as a
script that they kill: `python longrun.py FOLDER [recipe] [epochs] [workers] [run] [seconds]` writes the fingerprint to `FOLDER/end.json`,
and with `seconds`, between two saves, the number of the latest batch to `FOLDER/batch`."""
import hashlib,json,random,sys
from functools import lru_cache,partial
from pathlib import Path
import numpy as np
import torch
from torch import nn
from fastai.basics import *
from fastai.callback.all import *
from fastai.callback.mixup import MixUp
from sklearn.datasets import load_digits
from fastmix.resume import Resume

_digits = lru_cache(load_digits)   # read once, which takes as long as an epoch

class Digits:
    "scikit-learn's digits; each training item is moved by Python's `random` and darkened by numpy's"
    def __init__(self, lo, hi, train):
        d = _digits()
        self.x,self.y,self.train = torch.tensor(d.images[lo:hi]/8-1).float()[:,None],torch.tensor(d.target[lo:hi]),train
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = self.x[i]
        if self.train: x = x.roll(random.randint(-1,1), -1)*(1+.2*np.random.randn())
        return x.float(),self.y[i]

class Noise(Callback):
    "Noise from torch's generator and from one of its own"
    run_valid = False
    def before_fit(self): self.rng = np.random.default_rng(torch.randint(2**40, (1,)).item())
    def before_batch(self): self.learn.xb = (self.x+.1*torch.randn_like(self.x)*self.rng.random(),)

def loaders(n=320, bs=64, workers=0, plain=False):
    trn,val = Digits(0,n,True),Digits(1000,1200,False)
    if not plain: return DataLoaders(DataLoader(trn, bs=bs, shuffle=True, num_workers=workers), DataLoader(val, bs=bs, num_workers=workers), path=Path('.'))
    kw,tdl = dict(batch_size=bs, num_workers=workers, generator=torch.Generator().manual_seed(5)),torch.utils.data.DataLoader
    return DataLoaders(tdl(trn, shuffle=True, **kw), tdl(val, **kw), path=Path('.'))

def model(width=8):
    return nn.Sequential(nn.Conv2d(1,width,3,padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.2), nn.Flatten(),
                         nn.Linear(width*16,32), nn.ReLU(), nn.Dropout(.2), nn.Linear(32,10))

def halves(m): return [params(m[:6]), params(m[6:])]

def learner(path, seed=1, dls=None, width=8, n=320, bs=64, workers=0, plain=False, splitter=halves, cbs=(), noise=True, **kw):
    Path(path).mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    learn = Learner(loaders(n, bs, workers, plain) if dls is None else dls, model(width), CrossEntropyLossFlat(), path=Path(path), splitter=splitter,
                    metrics=accuracy, cbs=([Noise()] if noise else [])+list(L(cbs)), **kw)
    return learn

class Stop(Callback):
    "Raises `ex` at an event of an epoch: in the training or validation batch `batch`, if it is an event of batches"
    inner = 'before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch'.split()
    def __init__(self, event, epoch, batch=2, ex=KeyboardInterrupt, train=True, order=200): store_attr()
    def __call__(self, event):
        if event!=self.event or self.learn.epoch!=self.epoch: return
        if event in self.inner and (self.learn.iter!=self.batch or self.learn.training!=self.train): return
        raise self.ex()

def digest(o, h=None):
    "A SHA-256 over tensors, arrays and numbers, bit by bit"
    top,h = h is None,h or hashlib.sha256()
    if isinstance(o, Tensor): h.update(f'{o.dtype}{tuple(o.shape)}'.encode()); h.update(o.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if o.numel() else b'')
    elif isinstance(o, np.ndarray): h.update(np.ascontiguousarray(o).tobytes())
    elif isinstance(o, dict): [digest(x, h) for k in sorted(o, key=str) for x in (str(k),o[k])]
    elif isinstance(o, (list,tuple,L)): h.update(b'['); [digest(x, h) for x in o]; h.update(b']')
    else: h.update(repr(float(o) if isinstance(o, (float,np.floating)) else o).encode())
    return h.hexdigest()[:16] if top else None

def fingerprint(learn, csv=None):
    "What a run leaves behind, times aside"
    rec,res = learn.recorder,{}
    res['weights'],res['opt'] = digest(learn.model.state_dict()),digest(learn.opt.state_dict())
    for k in ('losses','lrs','iters','values','hps','metric_names'): res[k] = digest(getattr(rec, k, None))
    res['smooth'] = digest([rec.smooth_loss.count, rec.smooth_loss.val, learn.smooth_loss, learn.final_record, learn.train_iter, learn.epoch])
    if csv: res['csv'] = [l.rpartition(',')[0] for l in (learn.path/csv).read_text().splitlines()]
    res['draws'] = digest([random.random(), np.random.rand(2), torch.rand(2)])
    learn.model.eval()
    with torch.no_grad(): res['preds'] = digest([learn.model(to_device(b[0], next(learn.model.parameters()).device)) for dl in learn.dls.loaders for b in dl])
    return res

recipes = dict(
    one_cycle=lambda learn,n,cbs: learn.fit_one_cycle(n, 1e-2, cbs=[CSVLogger(), MixUp(), *cbs]),
    slices=lambda learn,n,cbs: learn.fit_one_cycle(n, slice(1e-3,1e-2), wd=.1, cbs=[MixUp(), *cbs]),
    flat_cos=lambda learn,n,cbs: learn.fit_flat_cos(n, 5e-3, cbs=[CSVLogger(), *cbs]),
    plateau=lambda learn,n,cbs: learn.fit(n, 2e-2, cbs=[ReduceLROnPlateau(patience=1, min_delta=.35), SaveModelCallback(fname='best'), CSVLogger(), *cbs]),
    early=lambda learn,n,cbs: learn.fit(n, 2e-2, cbs=[EarlyStoppingCallback(patience=2, min_delta=.7), SaveModelCallback(fname='best'), CSVLogger(), *cbs]),
    accumulate=lambda learn,n,cbs: learn.fit_one_cycle(n, 1e-2, cbs=[GradientAccumulation(n_acc=130), GradientClip(.5), *cbs]),
)

class Latest(Callback):
    "Writes down which batch is done"
    run_valid,order = False,300
    def before_fit(self): self.file = open(self.path/'batch', 'wb', buffering=0)
    def after_batch(self): self.file.seek(0); self.file.write(b'%8d' % self.train_iter)

def train(path, recipe='one_cycle', n=6, workers=0, resume='run', seconds=None):
    "Train in `path`, made afresh or continued, and write the fingerprint; `seconds`: between two saves"
    torch.set_num_threads(1)
    path = Path(path)
    learn = learner(path, workers=int(workers))
    cbs = [] if not resume else [Resume(resume)] if seconds is None else [Resume(resume, every_min=float(seconds)/60, ignore=Latest), Latest()]
    with learn.no_bar(),learn.no_logging(): recipes[recipe](learn, int(n), cbs)
    csv = 'history.csv' if (path/'history.csv').exists() else None
    (path/'end.json').write_text(json.dumps(fingerprint(learn, csv), indent=1))

__all__ = [n for n in globals() if not n.startswith(('test','_'))]  # fastai's star brings fastcore's test functions, which pytest would collect

if __name__=='__main__': train(*sys.argv[1:])
