"""What mixing adds to a whole training step: `python bench/speed.py --step`, and `--against PATH` beside another checkout of the repository.

A step is fastai's: the batch mixed, the model forward and backward, the loss, the optimizer. The same model takes turns: a few steps of plain training, then
with one mix after the other, in an order that changes from round to round. Each round gives a ratio, so that what disturbs one step disturbs its
neighbours as well; the result is the median of the ratios, with an interval that holds it in 95 of 100 cases. Two checkouts are two processes that
take turns in the same way: one waits while the other works."""
import json,math,os,random,subprocess,sys,time
from pathlib import Path

import numpy as np

MIXES = ['none','MixUp','CutMix','CutMixUp','ResizeMix','FMix','RecursiveMix','ManifoldMixUp','RICAP','ZetaMix']

def interval(x, level=.95):
    "The median of numbers, and the two of them between which the median of what they come from lies with this chance (by counting, whatever the distribution)"
    x = sorted(x)
    n,k,tail = len(x),0,.5**len(x)
    while tail+math.comb(n, k+1)*.5**n <= (1-level)/2: k,tail = k+1,tail+math.comb(n, k+1)*.5**n
    return float(np.median(x)),x[k],x[-1-k]

# --- one process: the steps of a checkout

class Steps:
    "Takes training steps on one batch with any of `MIXES`; makes one model, which all of them train"
    def __init__(self, arch='xresnet18', size=64, bs=16, steps=2, device='cpu', threads=1, mixes=MIXES):
        import torch
        from fastai.callback.core import Callback,CancelValidException
        from fastai.callback.progress import ProgressCallback  # gives a learner `no_bar`
        from fastai.data.core import DataLoaders
        from fastai.data.load import DataLoader
        from fastai.learner import Learner
        from fastai.losses import CrossEntropyLossFlat
        from fastai.vision.models import xresnet
        from fastmix import all as fastmix
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch,self.steps,self.device = torch,steps,device
        b = torch.randn(bs, 3, size, size, device=device),torch.randint(0, 10, (bs,), device=device)
        dl = DataLoader(list(range(bs*steps)), bs=bs, create_batch=lambda idx: b, device=torch.device(device))
        dls = DataLoaders(dl, dl, device=torch.device(device))
        dls.c = 10
        class NoValid(Callback):
            def before_validate(self): raise CancelValidException
        model = getattr(xresnet, arch)(n_out=10)
        def learner(name): return Learner(dls, model, CrossEntropyLossFlat(), cbs=[NoValid(), *([] if name=='none' else [getattr(fastmix, name)()])])
        self.learners = {o:learner(o) for o in mixes}

    def __call__(self, mix):
        "Milliseconds that a step takes: of the processor's time on a CPU, which other work on the machine disturbs least"
        on_card,learn = self.device=='cuda',self.learners[mix]
        sync,clock = (self.torch.cuda.synchronize,time.perf_counter) if on_card else (lambda: None,time.process_time)
        with learn.no_bar(), learn.no_logging():
            sync()
            t = clock()
            learn.fit(1, 1e-3)
            sync()
        return 1e3*(clock()-t)/self.steps

def serve():
    "Answer each line of the standard input, the name of a mix, with the time of a step, until it ends; the first line has the arguments of `Steps`"
    steps = Steps(**json.loads(sys.stdin.readline()))
    for line in sys.stdin: print('step', steps(line.strip()), flush=True)

class Checkout:
    "The steps of a checkout of the repository, in a process of its own"
    def __init__(self, path, **kwargs):
        env = {**os.environ, 'PYTHONPATH':str(path), 'PYTHONWARNINGS':'ignore'}
        self.p = subprocess.Popen([sys.executable, __file__], cwd=path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.send(json.dumps(kwargs))

    def send(self, line):
        self.p.stdin.write(line+'\n')
        self.p.stdin.flush()

    def __call__(self, mix):
        self.send(mix)
        for line in self.p.stdout:
            if line.startswith('step '): return float(line.split()[1])
        raise RuntimeError(f'the process that measures has ended ({self.p.wait()}); what it said stands above')

    def close(self):
        self.p.stdin.close()
        self.p.wait()

# --- rounds

def rounds(sides, mixes=MIXES, seconds=100., n=None):
    """Times of a step in ms, `{(side, mix): [one a round]}`, of `sides`, a dictionary of functions of the mix's name. Every round takes each once, in a new
    order; one round to warm up, then `n` of them, or as many as fit in `seconds`"""
    turns = [(s,m) for s in sides for m in mixes]
    for s,m in turns: sides[s](m)
    rng,res,start = random.Random(0),{o:[] for o in turns},time.time()
    while len(res[turns[0]]) < (n or 6) or (n is None and time.time()-start < seconds):
        for s,m in rng.sample(turns, len(turns)): res[s,m].append(sides[s](m))
    return res

def ratios(times, of, to):
    "Median ratio of two entries of `rounds`, with its interval"
    return interval(np.array(times[of])/np.array(times[to]))

def measure(against=None, mixes=MIXES, seconds=100., n=None, **kwargs):
    "Rows of the comparison: each mix beside plain training, and, `against` another checkout, each beside itself there"
    here = Path(__file__).resolve().parent.parent
    sides = {'here':Checkout(here, mixes=mixes, **kwargs), **({} if against is None else {'there':Checkout(Path(against).resolve(), mixes=mixes, **kwargs)})}
    try: times = rounds(sides, mixes, seconds, n)
    finally:
        for o in sides.values(): o.close()
    def row(case, who, of, to, beside):
        mid,lo,hi = ratios(times, of, to)
        return dict(part='step', case=case, who=who, us=1e3*min(times[of]), median=1e3*float(np.median(times[of])), ratio=mid, ratio_lo=lo, ratio_hi=hi,
                    of=beside, target=None, meets=None, rounds=len(times[of]))
    res = [row(f'{m} ({s})' if against else m, 'fastmix', (s,m), (s,'none'), 'no mixing') for s in sides for m in mixes if m!='none']
    return res + ([row(f'{m}, here and there', 'fastmix', ('here',m), ('there',m), 'the other checkout') for m in mixes] if against else [])

if __name__=='__main__': serve()
