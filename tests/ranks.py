"""One process of a distributed run on the CPU, with `many_devices`: `python ranks.py FOLDER SCENE...`, started once for each rank
with the variables that `accelerate launch` sets. What a scene leaves behind goes to `FOLDER/SCENE_RANK.json`."""
import os,signal,sys
from fastmix import callback as mix
from fastmix.distributed import *
from longrun import *

rank = int(os.environ['RANK'])

class Seen(Callback):
    "The batches that this rank trained on in the last epoch"
    order = 300
    def before_train(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append(digest([self.xb[0], self.learn.mix_up.lam]))

def fit(path, *cbs, seed=1):
    "A fit of 4 epochs; what this rank has in the end"
    learn = learner(path, seed=seed+10*rank)
    learn.add_cb(Seen())
    with learn.many_devices(),learn.no_bar(),learn.no_logging():
        learn.fit_one_cycle(4, 1e-2, cbs=[mix.MixUp(), GradientAccumulation(n_acc=100), CSVLogger(), *cbs])
        csv = [] if rank else [l.rpartition(',')[0] for l in (path/'history.csv').read_text().splitlines()]
        return dict(csv=csv, weights=digest(learn.model.state_dict()), opt=digest(learn.opt.state_dict()), losses=digest(learn.recorder.losses), lrs=digest(learn.recorder.lrs),
                    values=[list(map(float, v)) for v in learn.recorder.values], draws=digest([random.random(), np.random.rand(2), torch.rand(2)]), seen=learn.seen.seen)

class Pause(Callback):
    "One rank is told to end"
    def after_batch(self):
        if rank and self.epoch==1: self.learn.resume.pause()

def undisturbed(path): return fit(path)

def no_folder(path):
    "The first rank cannot write: all of them learn of it, and none waits for ever"
    if not rank:
        path.mkdir(exist_ok=True)
        (path/'models').write_text('a file')
    try: fit(path, Resume('run'))
    except OSError as e: return str(e)

def paused(path):
    "Ended by one rank, continued with other random numbers"
    fit(path, Pause(), Resume('run', ignore=Pause))
    return fit(path, Resume('run', ignore=Pause), seed=5)

def between(): return Resume('run', every_min=0, ignore=(Stop,SignalAt))

class SignalAt(Callback):
    "The last rank gets a signal, in training or in validation"
    def __init__(self, train=True): self.train = train
    def after_batch(self):
        if rank and self.training==self.train and self.epoch==1 and self.iter==self.train: os.kill(os.getpid(), signal.SIGTERM)

def signalled(path):
    "All ranks end after the same batch, and each says so to the shell"
    codes = []
    for train in (True,False):
        try: fit(path, SignalAt(train), between(), seed=1 if train else 3)
        except SystemExit as e: codes.append((e.code,sorted(f.name for f in (path/'models/run').glob('*.pth'))[-1]))
    return dict(codes=codes, **fit(path, between(), seed=5))

def killed(path): fit(path, Stop('after_batch', 2, batch=1, ex=lambda: os.kill(os.getpid(), signal.SIGKILL)), between())
def continued(path): return fit(path.with_name('killed'), between(), seed=7)
def of_two(path):
    "One process goes on from what two have saved: refused, and then with a new cycle from the weights"
    try: fit(path, between())
    except ValueError as e: refused = str(e)
    fit(path, Resume('run', every_min=0, resume='weights', ignore=(Stop,SignalAt)))
    return refused

if __name__=='__main__':
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for scene in sys.argv[2:]: (folder/f'{scene}_{rank}.json').write_text(json.dumps(globals()[scene](folder/scene), indent=1))
