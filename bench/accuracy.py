"""How well a model does that was trained without mixing, with fastai's own callbacks and with fastmix, at equal data, model and epochs.

`python bench/accuracy.py DATA` with an `.npz` file of uint8 images and labels (`x_train, y_train, x_test, y_test`) or a folder with
train/CLASS/* and val/CLASS/*. A recipe is a call of a learner's method: `--recipes` takes names of `RECIPES` or `name=call`, such as
`"mine=fit_long(n, lr, cbs=CutMixUp())"`, with `n` epochs, `--lr`, `--wd` and `fastai`'s mixing callbacks at hand. `--part valid`, for choosing, tests on training images that `--train` leaves; `--part test` on the
test images. Each finished run is a line of JSON in `--out`, and is not made again: stop whenever you like, and start the same command.
`--table FILE…` only prints what is there, and `--plot FILE` draws accuracy against epochs."""
import argparse,functools,json,multiprocessing,os,signal,time,warnings
from concurrent.futures import ProcessPoolExecutor,as_completed
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.basics import *
from fastai.callback import mixup as fastai_mixup
from fastai.callback.progress import ProgressCallback  # gives a learner `no_bar`
from fastai.callback.schedule import *
from fastai.data.load import DataLoader
from fastai.data.transforms import get_image_files
from sklearn.metrics import accuracy_score,log_loss
from sklearn.model_selection import train_test_split

from fastmix.all import *
from fastmix.data import folder_dls
from fastmix.models import make_model, small_resnet

RECIPES = dict(
    none='fit_one_cycle(n, lr, wd=wd)',
    fastai_mixup='fit_one_cycle(n, lr, wd=wd, cbs=fastai.MixUp())',
    fastai_cutmix='fit_one_cycle(n, lr, wd=wd, cbs=fastai.CutMix())',
    none_flat='fit_flat_cos(n, lr, wd=wd)',
    fastai_mixup_flat='fit_flat_cos(n, lr, wd=wd, cbs=fastai.MixUp())',
    fastai_cutmix_flat='fit_flat_cos(n, lr, wd=wd, cbs=fastai.CutMix())',
    fit_long='fit_long(n, lr)')

# --- data

def splits_of(y, y_test, n, part):
    "Indices to train with, the same ones for either part, and to test with: test images come after the training images"
    idx = np.arange(len(y))
    if n is None and part=='valid': n = int(.8*len(y))
    train,rest = (idx,idx[:0]) if n in (None,len(y)) else train_test_split(idx, train_size=n, stratify=y, random_state=1234)
    return np.sort(train), np.sort(rest) if part=='valid' else len(y)+np.arange(len(y_test))

def batch(x, y, idx, flip=False, pad=0):
    "Images `idx`, flipped and cropped at random"
    idx = torch.as_tensor(idx)
    n,h = len(idx),torch.arange(x.shape[-2]-2*pad)
    w = torch.arange(x.shape[-1]-2*pad).expand(n, -1)
    if flip: w = torch.where(torch.rand(n, 1)<.5, w, w.flip(1))
    top,left = torch.randint(2*pad+1, (2,n,1)) if pad else torch.zeros(2, n, 1, dtype=torch.long)
    xb = x[idx[:,None,None], :, (top+h)[:,:,None], (left+w)[:,None]]  # channels come last
    return xb.permute(0,3,1,2), y[idx]

def npz_dls(path, n, part, bs, flip):
    "Loaders of arrays in memory: flip and pad-4 crop for training, images as they are for testing"
    d = np.load(path, allow_pickle=False)
    x = [d[k] if d[k].ndim==4 else d[k][...,None] for k in ('x_train','x_test')]
    train,test = splits_of(d['y_train'], d['y_test'], n, part)
    x = torch.tensor(np.concatenate(x)).permute(0,3,1,2).float().div_(255)
    y = torch.tensor(np.concatenate([d['y_train'],d['y_test']])).long()
    x = (x-x[train].mean((0,2,3), keepdim=True))/x[train].std((0,2,3), keepdim=True)
    x = x.expand(-1, 3, -1, -1).contiguous()  # grey ones too
    dls = DataLoaders(
        DataLoader(train.tolist(), bs=bs, shuffle=True, drop_last=True, create_batch=functools.partial(batch, F.pad(x, [4]*4), y, flip=flip, pad=4)),
        DataLoader(test.tolist(), bs=500, create_batch=functools.partial(batch, x, y)))
    dls.c = int(y.max())+1
    return dls

def photo_dls(path, n, part, bs, size):
    "Loaders of a folder: random resized crops and flips for training, centre crops for testing"
    def splitter(files):
        side = np.array([o.parent.parent.name for o in files])
        tr,te = np.nonzero(side=='train')[0],np.nonzero(side=='val')[0]
        label = np.array([o.parent.name for o in files])
        a,b = splits_of(label[tr], label[te], n, part)
        order = np.concatenate([tr,te])
        return order[a].tolist(),order[b].tolist()
    return folder_dls(path, size=size, bs=bs, splitter=splitter)

# --- one run

def ece(p, y, bins=15):
    "Expected calibration error (https://arxiv.org/abs/1706.04599): confidence against accuracy, in bins of confidence"
    conf,right = p.max(1),p.argmax(1)==y
    which = np.minimum((conf*bins).astype(int), bins-1)
    return float(sum(abs(conf[m].mean()-right[m].mean())*m.mean() for m in (which==i for i in range(bins)) if m.any()))

class NoValid(Callback):
    "Only the end of the run is of interest"
    def before_validate(self): raise CancelValidException

def loaders(job, part):
    "Loaders to train with and to test `part` with"
    path,a = Path(job['path']),SimpleNamespace(**job)
    return photo_dls(path, a.train, part, a.bs, a.size) if path.is_dir() else npz_dls(path, a.train, part, a.bs, a.flip)

def one_run(job, parts):
    "Train once, test each of `parts`; returns the finished lines"
    t,a = time.time(),SimpleNamespace(**job)
    set_seed(a.seed, reproducible=True)
    dls = loaders(job, parts[0])
    model = small_resnet(dls.c) if a.arch=='small_resnet' else make_model(a.arch, dls.c, a.size)
    learn = Learner(dls, model, CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        eval(f'learn.{a.call}', dict(globals(), learn=learn, n=a.epochs, lr=a.lr, wd=a.wd, fastai=fastai_mixup))
    with learn.no_bar(): preds = [learn.get_preds(dl=(loaders(job, o) if i else dls).valid) for i,o in enumerate(parts)]
    return [dict({k:v for k,v in job.items() if k!='path'}, part=o, **scores(*p), seconds=round(time.time()-t)) for o,p in zip(parts, preds)]

def scores(p, y):
    "Accuracy, negative log-likelihood and calibration error of predicted probabilities"
    p,y = p.numpy().astype(float),y.numpy()
    res = dict(accuracy=accuracy_score(y, p.argmax(1)), nll=log_loss(y, p/p.sum(1, keepdims=True), labels=range(p.shape[1])), ece=ece(p, y))
    return {k:round(float(v), 5) for k,v in res.items()}

def quiet():
    "For a worker: one thread, and Ctrl-C is the parent's"
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

# --- many runs

KEY = 'data part train epochs bs lr wd arch size flip call seed'.split()

def read(files):
    "The lines of result files"
    return [json.loads(o) for f in files if Path(f).exists() for o in Path(f).read_text().splitlines() if o.strip()]

def key(line): return tuple(line[k] for k in KEY)

def run_all(jobs, parts, out, workers):
    "Run the jobs of which a part is not in `out` yet, several at a time, and add a line for each part as a job ends"
    done = {key(o) for o in read([out])}
    missing = [(o, [p for p in parts if key(dict(o, part=p)) not in done]) for o in jobs]
    todo = [o for o in missing if o[1]]
    print(f'{len(jobs)-len(todo)} runs are there, {len(todo)} to do', flush=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), initializer=quiet) as pool:
        futures = [pool.submit(one_run, *o) for o in todo]
        try:
            for i,f in enumerate(as_completed(futures)):
                with open(out, 'a') as o: o.write(''.join(json.dumps(r)+'\n' for r in f.result()))
                for r in f.result():
                    print(f"{i+1}/{len(todo)} {r['recipe']} seed {r['seed']} epochs {r['epochs']} {r['part']}: accuracy {r['accuracy']:.4f} "
                          f"nll {r['nll']:.3f} ece {r['ece']:.3f} in {r['seconds']} s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

def table(rows):
    "Mean and standard error of each recipe, in percent but for the likelihood"
    df = pd.DataFrame(rows)
    df[['accuracy','ece']] *= 100
    g = df.groupby(['data','part','train','epochs','recipe','call'], sort=False, dropna=False)
    res = g[['accuracy','nll','ece']].mean().join(g[['accuracy','nll']].sem().add_suffix('_se')).join(g.size().rename('seeds'))
    return res[['accuracy','accuracy_se','nll','nll_se','ece','seeds']].reset_index()

def plot(t, ax=None):
    "Accuracy against epochs, with standard errors"
    ax = ax or plt.subplots(figsize=(7,4.5))[1]
    for name,d in t.sort_values('epochs').groupby('recipe', sort=False): ax.errorbar(d.epochs, d.accuracy, d.accuracy_se.fillna(0), label=name, marker='o', capsize=3)
    ticks = sorted(t.epochs.unique())
    ax.set_xscale('log')
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel='epochs', ylabel='accuracy, %')
    ax.legend()
    return ax

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='?', help='an .npz file or a folder')
    p.add_argument('--recipes', nargs='+', default=list(RECIPES), help='names, or name=call')
    p.add_argument('--seeds', nargs='+', type=int, default=[0,1,2])
    p.add_argument('--epochs', nargs='+', type=int, default=[80])
    p.add_argument('--train', type=int, help='so many of the training images, stratified')
    p.add_argument('--part', nargs='+', choices=['valid','test'], default=['valid'], help='what to test; one run serves both')
    p.add_argument('--lr', type=float, default=6e-3)
    p.add_argument('--wd', type=float, default=.05)
    p.add_argument('--bs', type=int, default=64)
    p.add_argument('--arch', default='small_resnet')
    p.add_argument('--size', type=int, default=128, help='pixels, for a folder')
    p.add_argument('--no-flip', dest='flip', action='store_false', help='pictures whose mirror image means something else')
    p.add_argument('--workers', type=int, default=os.cpu_count())
    p.add_argument('--out', default='accuracy.jsonl')
    p.add_argument('--table', nargs='+', metavar='FILE', help='only print what these files have')
    p.add_argument('--plot', help='draw accuracy against epochs to this file')
    a = p.parse_args()
    if not a.table:
        if not a.data or not Path(a.data).exists(): p.error(f'DATA={a.data}: no such file or folder; give an .npz file or a folder with train/ and val/')
        recipes = {}
        for o in a.recipes:
            name,_,call = o.partition('=')
            if not call and name not in RECIPES: p.error(f'--recipes {name}: unknown; one of {", ".join(RECIPES)}, or name=call')
            recipes[name] = call or RECIPES[name]
        common = dict(path=str(a.data), data=Path(a.data).stem, **{k:vars(a)[k] for k in 'train bs lr wd arch size flip'.split()})
        run_all([dict(common, recipe=k, call=v, epochs=n, seed=s) for n in a.epochs for s in a.seeds for k,v in recipes.items()], a.part, a.out, a.workers)
    rows = read(a.table or [a.out])
    t = table(rows)
    print(t.round(3).drop(columns='call').to_string(index=False))
    if a.plot: plot(t).figure.savefig(a.plot, dpi=100, bbox_inches='tight')

if __name__=='__main__': main()
