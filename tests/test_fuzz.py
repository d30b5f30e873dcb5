"""Random runs (loader, kind of data, callbacks, optimizer, precision) that are stopped at a random moment and continued in a new session: each ends as
when nobody had stopped it, or said at the first checkpoint what it cannot restore. `python -m pytest -m fuzz`; `FUZZ=50,100` runs those numbers only."""
import io,os,warnings
from contextlib import redirect_stdout
from functools import partial
import pytest
import torch.utils.data
from fastai.callback.fp16 import MixedPrecision
from fastai.text.data import LMDataLoader,TensorText
from fastai.torch_core import params
from fastmix import callback as mix
from fastmix.ema import EMA
from fastmix.manifold import ManifoldMixUp
from fastmix.recipe import *
from fastmix.resume import Resume
from fastmix.schedule import hesitation,off_after
from longrun import *

first,last = map(int, os.environ.get('FUZZ', '0,200').split(','))

class Own(Callback):
    "Memory and generators of many kinds"
    run_valid = False
    def __init__(self, seed): self.rng,self.seen,self.f = np.random.default_rng(seed),{},partial(torch.rand, (1,), generator=torch.Generator().manual_seed(seed))
    def before_batch(self):
        self.seen[self.iter] = self.rng.normal()*self.f().item()
        self.learn.xb = tuple(x*(1+.01*sum(self.seen.values())) for x in self.xb)
class BF16(MixedPrecision):
    "Mixed precision with a scale that moves, without a GPU"
    def before_fit(self): self.autocast,self.scales,self.learn.scaler = torch.autocast('cpu', dtype=torch.bfloat16),L(),torch.amp.GradScaler('cpu', init_scale=2.**100, growth_interval=3)
    def before_backward(self): self.learn.loss_grad = self.scaler.scale(64*self.loss_grad)

class Vectors:
    def __init__(self, n, seed, kind, train):
        g = torch.Generator().manual_seed(seed)
        self.x,self.train = torch.randn(n, 1, 8, 8, generator=g),train
        self.y = torch.randn(n, 1, generator=g) if kind=='regression' else (torch.rand(n, 5, generator=g)>.5).float() if kind=='multi' else torch.randint(5, (n,), generator=g)
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = self.x[i]
        if self.train: x = x*(1+.1*random.random())+.1*np.random.randn()+.1*torch.randn(1)
        return x.float(),self.y[i]

def loaders_for(r, kind):
    n,bs = r.randint(40, 90),r.choice([8,16,24])
    workers,how = r.choice([0,0,0,1,2]),r.choice(['fastai','torch','own generator','from_dsets','sampler'])
    trn,val = (Vectors(k, 5+k, kind, t) for k,t in ((n,True),(20,False)))
    tdl = torch.utils.data.DataLoader
    if how=='fastai': return lambda: DataLoaders(DataLoader(trn, bs=bs, shuffle=True, drop_last=True, num_workers=workers), DataLoader(val, bs=bs, num_workers=workers))
    if how=='from_dsets': return lambda: DataLoaders.from_dsets(trn, val, bs=bs, num_workers=workers, device='cpu')
    def make():
        g = torch.Generator().manual_seed(3) if how=='own generator' else None
        order = dict(sampler=torch.utils.data.WeightedRandomSampler(torch.rand(n, generator=torch.Generator().manual_seed(4)), n)) if how=='sampler' else dict(shuffle=True)
        return DataLoaders(tdl(trn, batch_size=bs, num_workers=workers, generator=g, **order), tdl(val, batch_size=bs, num_workers=workers))
    return make

def recipe(seed):
    "A function that makes the learner, the callbacks of a fit, and the fit"
    r = random.Random(seed)
    kind = r.choice(['classes','classes','classes','regression','multi'])
    dls,c = loaders_for(r, kind),1 if kind=='regression' else 5
    loss = dict(classes=CrossEntropyLossFlat(), regression=MSELossFlat(), multi=BCEWithLogitsLossFlat())[kind]
    norm,drop,width = r.choice([nn.BatchNorm2d,lambda c: nn.GroupNorm(2,c),nn.InstanceNorm2d]),r.choice([0.,.2]),r.choice([4,8])
    opt = r.choice([Adam, partial(SGD, mom=.9), RMSProp, Lamb, ranger, partial(OptimWrapper, opt=torch.optim.AdamW), partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9))])
    mixes = [mix.MixUp,mix.CutMix,mix.CutMixUp,mix.FMix,mix.ResizeMix,mix.RecursiveMix,lambda: ManifoldMixUp(n_classes=None if kind!='classes' else 5)]
    chosen = r.sample(mixes, r.choice([0,1,1,1,2])) if kind=='classes' else r.choice([[],[mix.MixUp]])
    if len(chosen)==2: chosen = [o for o in chosen if o in mixes[:5]]
    extra = [f for f in (lambda: Own(seed), lambda: GradientAccumulation(n_acc=r0), lambda: GradientClip(.5), lambda: EMA(.9), CSVLogger, lambda: SaveModelCallback(fname='best'),
                         lambda: ReduceLROnPlateau(patience=1), lambda: BF16()) if r.random()<.3]
    r0,freeze,n = r.choice([20,40]),r.random()<.3,r.choice([3,4,5])
    how,slices = r.choice(['fit_one_cycle','fit_flat_cos','fit','fit_long']),r.random()<.3
    def learner(path, seed):
        Path(path).mkdir(parents=True, exist_ok=True)
        set_seed(seed)
        net = nn.Sequential(nn.Conv2d(1,width,3,2,1), norm(width), nn.ReLU(), nn.Flatten(), nn.Dropout(drop), nn.Linear(width*16,c))
        learn = Learner(dls(), net, loss, opt_func=opt, path=Path(path), splitter=lambda m: [params(m[:2]),params(m[2:])], cbs=[f() for f in chosen])
        if freeze: learn.freeze()
        return learn
    def fit(learn, *cbs):
        lr = slice(1e-3,1e-2) if slices and how!='fit_flat_cos' else 5e-3
        kw = dict(advice=False, schedule=r1) if how=='fit_long' else {}
        with redirect_stdout(io.StringIO()), learn.no_bar(),learn.no_logging(): getattr(learn, how)(n, lr, cbs=[*(f() for f in extra), *cbs], **kw)
    r1 = r.choice([None,off_after(.7),hesitation()])
    events = Stop.inner+'before_epoch before_train after_train before_validate after_validate after_epoch'.split()
    stops = [Stop(r.choice(events), r.randrange(n), batch=r.randrange(2), train=r.random()<.8, ex=r.choice([KeyboardInterrupt,ZeroDivisionError])) for _ in range(r.choice([1,1,2]))]
    return learner,fit,stops

@pytest.mark.fuzz
@pytest.mark.parametrize('seed', range(first, last))
@pytest.mark.filterwarnings('ignore')
def test_runs(tmp_path, seed):
    learner,fit,stops = recipe(seed)
    def run(name, stops=()):
        with warnings.catch_warnings(record=True) as said:
            for s in stops:
                try: fit(learner(tmp_path/name, 90+len(stops)) if s is not stops[0] else learner(tmp_path/name, 1), Resume('run', ignore=Stop), s)
                except s.ex: pass
            learn = learner(tmp_path/name, 1 if not stops else 77)
            fit(learn, Resume('run', ignore=Stop))
        csv = 'history.csv' if (learn.path/'history.csv').exists() else None
        return fingerprint(learn, csv), [str(o.message) for o in said if 'a continued run will differ' in str(o.message)]
    (a,told),(b,_) = run('whole'),run('run', stops)
    assert told or {k for k in a if a[k]!=b[k]}==set()
