"""How fast fastmix is, beside other libraries and beside the limits `clone` and `copy_`, all in one process and in turns.

`python bench/speed.py --quick` takes about half a minute on a CPU, without `--quick` a few minutes. `--json FILE` keeps every number,
`--plot FILE` draws them, `--only loss counts` measures some of the parts, `--device cuda` measures on an accelerator. `--step` measures what counts: what a
mix adds to a whole training step, and with `--against PATH` beside another checkout. timm, torchvision,
kornia and Composer take part where they are installed. A time is the lowest of the rounds' medians, which other work on the machine disturbs
least; the spread is from the first to the third quartile of the rounds' medians, and a ratio is the median of the ratios of the rounds.
What mixes `in place` overwrites the caller's batch.
Every contender mixes pictures and labels; its ratios are to a limit measured in the same rounds."""
import argparse,contextlib,json,tempfile,time,warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from fastai.callback import mixup as fastai_mixup
from fastai.basics import Callback,CrossEntropyLossFlat,DataLoaders,Learner
from fastai.callback.progress import ProgressCallback  # gives a learner `no_bar`
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader,TensorDataset

from fastmix.blend import blend
from fastmix.methods import CutMix, CutMixUp, FMix, MixUp, ResizeMix
from fastmix.draw import draw_cutmix, draw_cutmixup, draw_mixup, make_rng
from fastmix.functional import Mixup
from fastmix.loss import MixedLoss
from fastmix.resume import Resume
from fastmix.several import RICAP, ZetaMix
from step import MIXES, measure as measure_steps

# --- measuring

@contextlib.contextmanager
def threads(n):
    "`n` threads for a while: tiny batches have nothing to share out"
    old = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(old)

def measure(fs, rounds, seconds, device='cpu'):
    """Of each function the medians of its rounds, in µs; one after the other in each round, for about `seconds` a turn. What writes into a batch
    has an attribute `fresh`, which gives it another one before each call, outside of the time: a batch mixed again and again is no picture any more"""
    wait = torch.cuda.synchronize if device=='cuda' else lambda: None
    def call(f):
        getattr(f, 'fresh', lambda: None)()
        wait()
        t = time.perf_counter()
        f()
        wait()
        return (time.perf_counter()-t)*1e6
    n = {}
    for k,f in fs.items():
        call(f)
        n[k] = min(max(int(seconds*1e6/call(f)), 1), 1000)
    res = {k:[] for k in fs}
    for _ in range(rounds):
        for k,f in fs.items(): res[k].append(float(np.median([call(f) for _ in range(n[k])])))
    return res

def in_place(f, x, y):
    "`f(out, y)` on a batch of its own, which is `x` again before each call"
    out = x.clone(memory_format=torch.preserve_format)
    def call(): f(out, y)
    call.fresh = lambda: out.copy_(x)
    return call

def times(rounds, limit):
    "How many times the `limit`, round by round, so that what disturbs one disturbs the other"
    return float(np.median(np.array(rounds)/np.array(limit)))

def row(part, case, who, rounds, limit=None, of='', target=None, **kwargs):
    "A line of the table; `limit`: the rounds of what the time is divided by, else the target is in µs"
    best,(lo,hi) = min(rounds),np.percentile(rounds, [25,75])
    ratio = times(rounds, limit) if limit else None
    meets = None if target is None else bool((ratio if limit else best) <= target)
    return dict(part=part, case=case, who=who, us=best, median=float(np.median(rounds)), lo=float(lo), hi=float(hi), ratio=ratio, of=of,
                target=target, meets=meets, **kwargs)

def loaders(n=16, bs=8):
    data = TensorDataset(torch.randn(n, 3, 4, 4), torch.randint(0, 10, (n,)))
    return DataLoaders.from_dsets(data, TensorDataset(*data[:bs]), bs=bs, num_workers=0)

def learner(*cbs, dls=None):
    return Learner(dls or loaders(), nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), loss_func=CrossEntropyLossFlat(), cbs=cbs)

def callback(cb, x, y):
    "A callback's work on a batch, as a function"
    learn = learner(cb)
    learn.training,learn.pct_train = True,0.
    for event in ('before_fit','before_train'): getattr(cb, event, lambda: None)()
    if hasattr(cb, 'n_classes'): cb.n_classes = 10
    def f():
        learn.xb,learn.yb = (x,),(y,)
        cb.before_batch()
    return f

SHAPES = [((64,3,224,224), torch.float32), ((256,3,32,32), torch.float32), ((64,3,128,128), torch.bfloat16)]
QUICK = 'MixUp batch','MixUp elem','CutMix batch','CutMix elem','CutMixUp elem'    # kinds of mix that `--quick` looks at

# --- contenders: functions that mix a batch, by what they do

def ours(x, y):
    res = {f'{c.__name__} {m}':callback(c(mode=m), x, y) for c in (MixUp, CutMix, CutMixUp) for m in ('batch','pair','elem')}
    for cb in (ResizeMix(), FMix(), RICAP(), ZetaMix()): res[f'{type(cb).__name__} {cb.mode}'] = callback(cb, x, y)
    for k,a in dict(MixUp=(1.,0.), CutMix=(0.,1.), CutMixUp=(1.,1.)).items():
        for mode in ('batch','pair','elem'):
            res[f'{k} {mode}, in place'] = in_place(Mixup(*a, mode=mode, label_smoothing=0., num_classes=10, inplace=True), x, y)
    return res

def fastai(x, y): return {'MixUp elem':callback(fastai_mixup.MixUp(), x, y), 'CutMix batch, in place':callback(fastai_mixup.CutMix(), x.clone(), y)}

def timm(x, y):
    from timm.data import Mixup as TimmMixup
    res = {}
    for k,a in dict(MixUp=(1.,0.), CutMix=(0.,1.), CutMixUp=(1.,1.)).items():
        for mode in ('batch','pair','elem'):
            res[f'{k} {mode}, in place'] = in_place(TimmMixup(*a, mode=mode, label_smoothing=0., num_classes=10), x, y)
    return res

def torchvision(x, y):
    from torchvision.transforms import v2
    return {f'{k} batch':(lambda f=f: f(x, y)) for k,f in dict(MixUp=v2.MixUp(alpha=.4, num_classes=10), CutMix=v2.CutMix(num_classes=10)).items()}

def kornia(x, y):
    from kornia.augmentation import RandomCutMixV2,RandomMixUpV2
    kw = dict(p=1., data_keys=['input','class'])
    fs = dict(MixUp=RandomMixUpV2(**kw), CutMix=RandomCutMixV2(**kw, use_correct_lambda=True))
    return {f'{k} elem':(lambda f=f: f(x, y)) for k,f in fs.items()}

def composer(x, y):
    from composer.algorithms.cutmix.cutmix import cutmix_batch
    from composer.algorithms.mixup.mixup import mixup_batch
    return {'MixUp batch':lambda: mixup_batch(x, y, alpha=.4), 'CutMix batch':lambda: cutmix_batch(x, y)}

def contenders(x, y, quick=False):
    "(what it does, who) to function, of those that are installed and take this batch; `quick`: only some kinds of mix"
    res = {}
    for g in (ours, fastai, timm, torchvision, kornia, composer):
        who = 'fastmix' if g is ours else g.__name__
        if not find_spec(who): continue
        for k,f in g(x, y).items():
            if quick and k.removesuffix(', in place') not in QUICK: continue
            try: f()
            except Exception as e:
                if who=='fastmix': raise
                print(f"{who} {k} on {tuple(x.shape)} {x.dtype}: {type(e).__name__}, left out")
            else: res[k,who] = f
    return res

# --- parts of the comparison

def ahead(k, who, rounds):
    "Of one of ours that leaves the batch alone: which is the fastest of the others that do the same, and are we faster?"
    others = {} if 'place' in k else {w:np.median(r) for (o,w),r in rounds.items() if o==k and w not in ('limit','fastmix')}
    if who!='fastmix' or not others: return {}
    best = min(others, key=others.get)
    return dict(target=f'ahead of {best}', meets=bool(np.median(rounds[k,who])<others[best]))

def pictures(args):
    "Whole batches of pictures and their labels against the fastest of the others, and as multiples of `clone`, in place of `copy_`"
    res = []
    for shape,dtype in SHAPES:
        for fmt in (torch.contiguous_format,) if args.quick else (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, device=args.device).to(dtype, memory_format=fmt)
            y,out = torch.randint(0, 10, shape[:1], device=args.device),torch.empty_like(x)
            fs = {('clone','limit'):lambda: x.clone(), ('copy_','limit'):lambda: out.copy_(x), **contenders(x, y, args.quick)}
            rounds = measure(fs, args.rounds, args.seconds/4, args.device)
            case = f"({','.join(map(str, shape))}) {str(dtype)[6:]}{'' if fmt is torch.contiguous_format else ' channels_last'}"
            for (k,who),r in rounds.items():
                of = 'copy_' if 'place' in k else 'clone'
                line = row('pictures', f'{case} {k}', who, r, rounds[of,'limit'], of, shape=case, kind=k)
                res.append({**line, 'clones':times(r, rounds['clone','limit']), **ahead(k, who, rounds)})
    return res

def loss(args):
    "Loss forward and backward against plain cross-entropy"
    cases = [(64,10), (256,1000), (1024,1000)] if args.quick else [(64,10), (64,1000), (256,1000), (1024,1000), (256,21841), (1024,21841)]
    res = []
    for n,c in cases:
        pred,y = torch.randn(n, c, device=args.device, requires_grad=True),torch.randint(0, c, (n,), device=args.device)
        mixed,ce = torch.zeros(n, c, device=args.device),CrossEntropyLossFlat()
        lf = MixedLoss(ce, (y,), draw_mixup(make_rng(0), n), (mixed,))
        fs = dict(plain=lambda: torch.autograd.grad(ce(pred, y), pred), mixed=lambda: torch.autograd.grad(lf(pred, mixed), pred))
        r = measure(fs, args.rounds, args.seconds, args.device)
        res.append(row('loss', f'({n},{c})', 'fastmix', r['mixed'], r['plain'], 'cross-entropy', 1.5 if n>=256 and c>=1000 else None))
    return res

@threads(1)
def fit(args):
    "What `Learner.fit` takes longer for each batch of a tiny model"
    n,cbs = 25 if args.quick else 100,dict(none=[], fastmix=[MixUp()], fastai=[fastai_mixup.MixUp()])
    dls = loaders(8*n)
    learns = {k:learner(*c, dls=dls) for k,c in cbs.items()}
    def run(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    r = {k:[o/n for o in v] for k,v in measure({k:lambda l=l: run(l) for k,l in learns.items()}, args.rounds*2, 0).items()}
    res = [row('fit', '(8,3,4,4) a batch', k, v, r['none'], 'no mixing') for k,v in r.items()]
    over = {k:max(min(v)-min(r['none']), .1) for k,v in r.items()}
    best = over['fastmix']/over['fastai']
    return res + [dict(res[1], case='(8,3,4,4) MixUp, overhead', us=over['fastmix'], median=None, lo=None, hi=None, ratio=best, of="fastai's",
                       target=1., meets=best<=1)]

class Count(TorchDispatchMode):
    "Counts what an accelerator is asked to do; on the `meta` device without one, where reading a value on the host is an error"
    def __init__(self): super().__init__(); self.launches = self.allocations = self.uploads = self.syncs = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(o, torch.Tensor) and o.device.type!='cpu' for o in (*args, *(kwargs or {}).values(), out)):
            name,fresh = func.overloadpacket.__name__,not any(r.alias_info for r in func._schema.returns)
            upload = name=='_to_copy' and args[0].device.type=='cpu'
            self.uploads += upload
            self.allocations += fresh and not upload
            self.launches += not (func.is_view or upload or name.startswith(('empty','new_empty','detach','_unsafe_view')))
            self.syncs += name in ('_local_scalar_dense','nonzero','is_nonzero','masked_select','_unique2')
        return out

def counts(args):
    "Launches, allocations and uploads of the pictures' blend on an accelerator"
    device,res = 'meta' if args.device=='cpu' else args.device,[]
    x,rng = torch.empty(64, 3, 32, 32, device=device),make_rng(0)
    for k,draw in ('MixUp',lambda m: draw_mixup(rng, 64, mode=m)),('CutMix',lambda m: draw_cutmix(rng, 64, (32,32), minmax=(.3,.5), mode=m)):
        for mode in ('batch','pair','elem'):
            plan,c = draw(mode),Count()
            with no_sync(device), c: blend(x, plan)
            n = {k:v for k,v in vars(c).items() if k in ('launches','allocations','uploads','syncs')}
            ok = (c.launches<=4 or mode!='batch') and c.syncs==0
            res.append(dict(part='counts', case=f'(64,3,32,32) {k} {mode}', who='fastmix', us=None, **n, meets=ok,
                            target='0 syncs' + (', ≤ 4 launches' if mode=='batch' else '')))
    return res

@contextlib.contextmanager
def no_sync(device):
    "On CUDA every wait of the host is an error"
    if device=='cuda': torch.cuda.set_sync_debug_mode('error')
    try: yield
    finally:
        if device=='cuda': torch.cuda.set_sync_debug_mode('default')

# --- results

def table(rows):
    "The table on screen"
    print(f"{'what':13}{'case':57}{'who':12}{'time':>11}{'spread':>22}  {'result':52}{'target':24}meets the target")
    for r in rows:
        us = '' if r['us'] is None else f"{r['us']:.0f} µs" if r['us']<1e5 else f"{r['us']/1e3:.0f} ms"
        spread = f"{r['lo']:.0f}–{r['hi']:.0f}" if r.get('lo') is not None else ''
        if 'launches' in r: result = ', '.join(f"{r[k]} {k}" for k in ('launches','allocations','uploads','syncs'))
        elif 'ratio_lo' in r: result = f"{r['ratio']:.3f} ({r['ratio_lo']:.3f} to {r['ratio_hi']:.3f}) × {r['of']}"
        else: result = f"{r['ratio']:.2f} × {r['of']}" if r['ratio'] else ''
        target,meets = r['target'] or '',{None:'', True:'yes', False:'NO'}[r['meets']]
        if isinstance(target, (int,float)): target = f"≤ {target} {'× '+r['of'] if r['ratio'] else 'µs'}"
        print(f"{r['part']:13}{r['case']:57}{r['who']:12}{us:>11}{spread:>22}  {result:52}{target:24}{meets}")

def plot(rows, path):
    "Bars of each kind of mix, a panel a shape, one colour a library"
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rows = [r for r in rows if r['part']=='pictures' and r['who']!='limit']
    shapes,kinds,whos = (list(dict.fromkeys(r[k] for r in rows)) for k in ('shape','kind','who'))
    fig,axs = plt.subplots(1, len(shapes), figsize=(5*len(shapes), .45*len(kinds)+1.5), sharey=True, squeeze=False, layout='constrained')
    for ax,shape in zip(axs[0], shapes):
        for r in rows:
            i = whos.index(r['who'])
            if r['shape']==shape: ax.barh(kinds.index(r['kind'])+.8*(i/len(whos)-.4), r['ratio'], .8/len(whos), color=f'C{i}')
        ax.set(title=shape, xlabel='time, × clone (in place: × copy_)', yticks=range(len(kinds)), yticklabels=kinds, xscale='log')
        ax.axvline(1, c='grey', lw=.8)
    axs[0][0].invert_yaxis()
    axs[0][-1].legend([plt.Rectangle((0,0), 1, 1, color=f'C{i}') for i in range(len(whos))], whos)
    fig.savefig(path)

def step(args):
    "A whole training step of xresnet18 at 64 px with each mix beside one without, on one thread of a CPU (see `bench/step.py`)"
    return measure_steps(args.against, args.mixes, args.seconds*250, device=args.device)

def save(args):
    "What training waits for a checkpoint between two batches of a network of 100 MB with Adam, beside what writing it takes"
    n,log = (256 if args.seconds<.1 else 4096), {'the loop waits':[], 'writing':[]}
    def timed(f, who):
        def g(*a, **kw):
            t = time.perf_counter()
            try: return f(*a, **kw)
            finally: log[who].append((time.perf_counter()-t)*1e6)
        return g
    class Saver(Resume): pass
    Saver._save,Saver._write_file = timed(Resume._save, 'the loop waits'),timed(Resume._write_file, 'writing')
    xs = TensorDataset(torch.randn(64*args.rounds, 64), torch.randint(10, (64*args.rounds,)))
    dls = DataLoaders(*[DataLoader(xs, batch_size=64)]*2, device=args.device)
    net = nn.Sequential(nn.Linear(64,n), nn.ReLU(), nn.Linear(n,n), nn.ReLU(), nn.Linear(n,n//2), nn.ReLU(), nn.Linear(n//2,10)).to(args.device)
    class Wait(Callback):
        "The next batch comes when the file is there, so that each batch is saved"
        def before_batch(self): self.learn.saver._writing.wait()
    with tempfile.TemporaryDirectory() as d:
        learn = Learner(dls, net, CrossEntropyLossFlat(), path=Path(d))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[Wait(), Saver('run', every_min=1e-9, ignore=Wait)])
        size = max(f.stat().st_size for f in Path(d).rglob('*.pth'))/1e6
    case = f'{sum(p.numel() for p in net.parameters())/1e6:.1f} M parameters, a file of {size:.0f} MB, {args.device}'
    us = {k:sorted(v[1:-1]) for k,v in log.items()}  # those of the start and the end are waited for
    mid = {k:v[len(v)//2] for k,v in us.items()}
    return [dict(part='save', case=case, who=k, us=mid[k], lo=v[len(v)//4], hi=v[3*len(v)//4], ratio=mid[k]/mid['writing'], of='writing', target=None, meets=None)
            for k,v in us.items()]

PARTS = dict(step=step, save=save, pictures=pictures, loss=loss, fit=fit, counts=counts)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer rounds and cases, about half a minute')
    p.add_argument('--only', nargs='+', choices=list(PARTS), default=list(PARTS), help='parts to measure')
    p.add_argument('--step', dest='only', action='store_const', const=['step'], help='only the whole training step, two minutes')
    p.add_argument('--against', metavar='PATH', help='another checkout of the repository, whose training steps take turns with those of this one')
    p.add_argument('--mixes', nargs='+', choices=MIXES, default=MIXES, help='mixes of the training step')
    p.add_argument('--json', help='file for all numbers')
    p.add_argument('--plot', help='file for the plot of the pictures')
    p.add_argument('--device', default='cpu', help="'cpu' or 'cuda'")
    p.add_argument('--rounds', type=int, help='turns that each of them gets, 9 or with --quick 2')
    p.add_argument('--threads', type=int, default=2, help='threads of PyTorch on the CPU')
    args = p.parse_args()
    args.seconds,rounds = (.06,2) if args.quick else (.4,9)
    args.rounds = args.rounds or rounds
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    rows = [r for k in args.only for r in PARTS[k](args)]
    table(rows)
    if args.plot: plot(rows, args.plot)
    if args.json:
        with open(args.json, 'w') as f: json.dump(dict(torch=torch.__version__, threads=args.threads, device=args.device, rows=rows), f, indent=1)

if __name__=='__main__': main()
