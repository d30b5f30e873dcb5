"""How well a model does that was trained without mixing, with fastai's own callbacks and with fastmix, at equal data, model and epochs.

`python bench/accuracy.py DATA` with an `.npz` file of uint8 images and labels (`x_train, y_train, x_test, y_test`) or a folder with
train/CLASS/* and val/CLASS/*. A recipe is a call of a learner's method: `--recipes` takes names of `RECIPES` or `name=call`, such as
`"mine=fit_long(n, lr, cbs=CutMixUp())"`, with `n` epochs, `--lr`, `--wd` and `fastai`'s mixing callbacks at hand. `--part valid`, for choosing, tests on training images that `--train` leaves; `--part test` on the
test images. Each finished run is a line of JSON in `--out`, and is not made again: stop whenever you like, and start the same command.
`--table FILE…` only prints what is there, and `--plot FILE` draws accuracy against epochs.

`--device cuda` trains on an accelerator: the pictures lie there as bytes and are cropped there, `--workers` runs share the card, and `--until 800`
starts nothing that would not be done in 800 seconds. `--device cpu` is the same path on the CPU; without `--device` the CPU loads each picture by itself,
as `fastmix-train` does.

Fine-tuning takes two commands: `--classes 0:5 --save-body FILE` trains on the first five classes and keeps all of the model but its last layer, and
`--classes 5:10 --body FILE` begins with that on the others, with recipes such as `"mixup=fine_tune(n, lr, cbs=MixUp(.2))"`."""
import argparse,functools,json,multiprocessing,os,re,signal,tempfile,time,warnings
from concurrent.futures import FIRST_COMPLETED,ProcessPoolExecutor,wait
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.basics import *
from fastai.callback import mixup as fastai_mixup
from fastai.callback.progress import ProgressCallback  # gives a learner `no_bar`
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision  # gives a learner `to_bf16`
from fastai.callback.schedule import *
from fastai.data.load import DataLoader
from fastai.data.transforms import get_image_files
from sklearn.metrics import accuracy_score,log_loss

import baselines  # gives a learner `fit_timm` and `fit_torchvision`
from fastmix.all import *
from fastmix.data import folder_dls
from fastmix.models import make_model, small_resnet
from pictures import OnDevice,decode,splits_of
from report import BEFORE,key,plot,read,table

RECIPES = dict(
    none='fit_one_cycle(n, lr, wd=wd)',
    fastai_mixup='fit_one_cycle(n, lr, wd=wd, cbs=fastai.MixUp())',
    fastai_cutmix='fit_one_cycle(n, lr, wd=wd, cbs=fastai.CutMix())',
    none_flat='fit_flat_cos(n, lr, wd=wd)',
    fastai_mixup_flat='fit_flat_cos(n, lr, wd=wd, cbs=fastai.MixUp())',
    fastai_cutmix_flat='fit_flat_cos(n, lr, wd=wd, cbs=fastai.CutMix())',
    timm='fit_timm(n, lr)',
    torchvision='fit_torchvision(n, lr, wd=wd)',
    fit_long='fit_long(n, lr)')

# --- data

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
    "Loaders to train with and to test `part` with, each picture by itself"
    path,a = Path(job['path']),SimpleNamespace(**job)
    return photo_dls(path, a.train, part, a.bs, a.size) if path.is_dir() else npz_dls(path, a.train, part, a.bs, a.flip)

def scaled_resnet(n_out, factor):
    "`small_resnet` for pictures of 32 pixels and more, with `factor` times its channels"
    widths = [round(factor*o) for o in (32,64,128,128)]
    blocks = [ResBlock(1, a, b, stride=s) for a,b,s in zip(widths[:1]+widths, widths, (1,2,2,2))]
    return nn.Sequential(ConvLayer(3, widths[0], stride=2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], n_out))

def model_of(arch, n_out, size):
    "A model from scratch: `small_resnet`, the same with more or fewer channels as `small_resnet*2`, or any name that `fastmix-train` knows"
    name,_,factor = arch.partition('*')
    if name!='small_resnet': return make_model(arch, n_out, size)
    return scaled_resnet(n_out, float(factor)) if factor else small_resnet(n_out)

OPTS = dict(adam=Adam, ranger=ranger)

def learner(job, dls):
    "The learner of a job: model, optimizer, loss and precision, the same for every recipe"
    a = SimpleNamespace(**job)
    model = model_of(a.arch, dls.c, a.size)
    if a.body: model[:-1].load_state_dict(torch.load(a.body, map_location='cpu', weights_only=True))
    splitter = (lambda m: [params(m[:-1]), params(m[-1])]) if a.body else trainable_params
    loss = LabelSmoothingCrossEntropyFlat(eps=a.smoothing) if a.smoothing else CrossEntropyLossFlat()
    learn = Learner(dls, model, loss, opt_func=OPTS[a.opt], splitter=splitter, metrics=accuracy, cbs=ChannelsLast() if a.device else None)
    return learn.to_bf16() if a.bf16 else learn

def card(model):
    "Name of the device that a model is on, for the result line"
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type=='cuda' else 'CPU'

def one_run(job, parts):
    "Train once, test each of `parts`; returns the finished lines"
    t,a = time.time(),SimpleNamespace(**job)
    set_seed(a.seed, reproducible=a.device!='cuda')
    data = OnDevice(a.path, a.device, a.train, parts[0], a.classes) if a.device else None
    dls = data.dls(parts[0], a.bs, a.size, a.flip) if data else loaders(job, parts[0])
    learn = learner(job, dls)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        eval(f'learn.{a.call}', dict(globals(), learn=learn, n=a.epochs, lr=a.lr, wd=a.wd, fastai=fastai_mixup))
    if a.save_body: torch.save(learn.model[:-1].state_dict(), a.save_body)
    tests = [dls.valid if not i else (data.dls(o, a.bs, a.size) if data else loaders(job, o)).valid for i,o in enumerate(parts)]
    with learn.no_bar(): preds = [learn.get_preds(dl=o) for o in tests]
    made = dict(card=card(learn.model), torch=torch.__version__, seconds=round(time.time()-t))
    return [dict({k:v for k,v in job.items() if k not in ('path','save_body')}, part=o, **scores(*p), **made) for o,p in zip(parts, preds)]

def scores(p, y):
    "Accuracy, negative log-likelihood and calibration error of predicted probabilities"
    p,y = p.float().numpy().astype(float),y.numpy()
    res = dict(accuracy=accuracy_score(y, p.argmax(1)), nll=log_loss(y, p/p.sum(1, keepdims=True), labels=range(p.shape[1])), ece=ece(p, y))
    return {k:round(float(v), 5) for k,v in res.items()}

def quiet():
    "For a worker: one thread, and Ctrl-C is the parent's"
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

# --- many runs

TABLE = 'data part train epochs recipe accuracy accuracy_se nll nll_se ece seeds'.split()

LIKE = 'data train bs arch size device bf16'.split()

def seconds_an_epoch(job, lines):
    "The longest that an epoch of such a job took, whatever the recipe; `None`: none is known"
    return max((o['seconds']/o['epochs'] for o in lines if all(o[k]==job[k] for k in LIKE)), default=None)

def in_time(job, lines, left):
    "Can a job end in `left` seconds? The first of its kind is tried"
    each = seconds_an_epoch(job, lines)
    return left>0 and (each is None or each*job['epochs']<=left)

def run_all(jobs, parts, out, workers, until=float('inf')):
    """Run the jobs of which a part is not in `out` yet, several at a time, and add a line for each part as a job ends; after `until` seconds none
    is running, if the runs before say rightly how long one takes"""
    start,lines = time.time(),read([out])
    done = {key(o) for o in lines}
    missing = [(o, [p for p in parts if key(dict(o, part=p)) not in done]) for o in jobs]
    todo = [o for o in missing if o[1]]
    total,n,running = len(todo),0,set()
    print(f'{len(jobs)-total} runs are there, {total} to do', flush=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), initializer=quiet) as pool:
        try:
            while todo or running:
                left = until-(time.time()-start)
                while todo and len(running)<workers:
                    i = next((i for i,o in enumerate(todo) if in_time(o[0], lines, left)), None)
                    if i is None: break
                    running.add(pool.submit(one_run, *todo.pop(i)))
                if not running: break
                ended,running = wait(running, return_when=FIRST_COMPLETED)
                for f in ended:
                    n += 1
                    lines += f.result()
                    with open(out, 'a') as o: o.write(''.join(json.dumps(r)+'\n' for r in f.result()))
                    for r in f.result():
                        print(f"{n}/{total} {r['recipe']} seed {r['seed']} epochs {r['epochs']} {r['part']}: accuracy {r['accuracy']:.4f} "
                              f"nll {r['nll']:.3f} ece {r['ece']:.3f} in {r['seconds']} s", flush=True)
            if todo: print(f'{len(todo)} runs are left: they would not end within {until:g} s', flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

def part_of_classes(s):
    if re.fullmatch(r'\d+:\d+', s): return s
    raise argparse.ArgumentTypeError(f'{s!r}: write two whole numbers as 5:10, for the classes 5 to 9')

def main(args=None):
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
    p.add_argument('--arch', default='small_resnet', help='small_resnet, the same with twice the channels as small_resnet*2, or a name that fastmix-train knows')
    p.add_argument('--size', type=int, default=128, help='pixels, for a folder')
    p.add_argument('--no-flip', dest='flip', action='store_false', help='pictures whose mirror image means something else')
    p.add_argument('--opt', choices=OPTS, default='adam')
    p.add_argument('--smoothing', type=float, default=0., help='label smoothing of the loss, in [0,1)')
    p.add_argument('--device', choices=['cpu','cuda'], help='pictures as bytes on this device, whole batches at a time')
    p.add_argument('--hold', type=int, help='side of the squares as which a folder is held there; without it 5/4 of --size')
    p.add_argument('--classes', metavar='A:B', type=part_of_classes, help='only the classes A to B-1; needs --device')
    p.add_argument('--body', metavar='FILE', help='begin with what --save-body kept; needs --device')
    p.add_argument('--save-body', metavar='FILE', help='keep all of the trained model but its last layer; one run')
    p.add_argument('--float32', dest='bf16', action='store_false', help='no bfloat16 on an accelerator')
    p.add_argument('--workers', type=int, help='runs at a time; without it one a core, on an accelerator 8 at most')
    p.add_argument('--until', type=float, default=float('inf'), metavar='SECONDS', help='start nothing that would not be done by then')
    p.add_argument('--out', default='accuracy.jsonl')
    p.add_argument('--table', nargs='+', metavar='FILE', help='only print what these files have')
    p.add_argument('--plot', help='draw accuracy against epochs to this file')
    a = p.parse_args(args)
    if not a.table:
        if not a.data or not Path(a.data).exists(): p.error(f'DATA={a.data}: no such file or folder; give an .npz file or a folder with train/ and val/')
        recipes = {}
        for o in a.recipes:
            name,_,call = o.partition('=')
            if not call and name not in RECIPES: p.error(f'--recipes {name}: unknown; one of {", ".join(RECIPES)}, or name=call')
            recipes[name] = call or RECIPES[name]
        if a.device=='cuda' and not torch.cuda.is_available(): p.error('--device cuda: PyTorch finds none here')
        if (a.classes or a.body) and not a.device: p.error('--classes and --body: only with --device')
        if a.body and not Path(a.body).exists(): p.error(f'--body {a.body}: no such file; a run with --save-body makes it')
        if a.save_body and len(recipes)*len(a.epochs)*len(a.seeds)>1: p.error(f'--save-body {a.save_body}: give one recipe, one length and one seed')
        common = {k:vars(a)[k] for k in 'train bs lr wd arch size flip opt smoothing device classes body save_body'.split()}
        common.update(path=str(a.data), data=Path(a.data).stem, bf16=a.bf16 and a.device=='cuda')
        workers = a.workers or (min(8, os.cpu_count()) if a.device=='cuda' else os.cpu_count())
        with tempfile.TemporaryDirectory() as tmp:
            if a.device and Path(a.data).is_dir(): common['path'] = decode(a.data, tmp, a.hold or a.size*5//4)
            run_all([dict(common, recipe=k, call=v, epochs=n, seed=s) for s in a.seeds for n in a.epochs for k,v in recipes.items()], a.part, a.out, workers, a.until)
    rows = read(a.table or [a.out])
    t = table(rows)
    print(t.round(3)[TABLE].to_string(index=False))
    if a.plot: plot(t).figure.savefig(a.plot, dpi=100, bbox_inches='tight')

if __name__=='__main__': main()
