"Runs that are stopped, killed, damaged, refused, and the same in the end"
import errno,io,os,pickle,re,shutil,signal,subprocess,sys,tempfile,time,traceback,types,warnings
from collections import Counter,deque
from contextlib import contextmanager,redirect_stdout
from copy import deepcopy
import matplotlib.pyplot as plt
import pytest
resource = pytest.importorskip('resource')  # these tests need signals, limits and users as Unix has them
from fastai.text.data import LMDataLoader,SortedDL,TensorText,pad_input_chunk
from fastmix import callback as mix
from fastmix import resume as R
from fastmix.checkpoint import files
from fastmix.checkpoint.fingerprint import checksum_items
from fastmix.checkpoint.history import RunHistory
from fastmix.checkpoint.serialize import from_plain, to_plain
from fastmix.checkpoint.state import random_state
from fastmix.checkpoint.files import newest_checkpoint, read_checkpoint, write_checkpoint
from fastmix.resume import OtherRun, Resume
from longrun import *

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
saying = pytest.mark.filterwarnings

@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def fit(recipe, learn, n, *cbs, bar=False):
    "Fit quietly; what was printed"
    out = io.StringIO()
    with redirect_stdout(out):
        if bar: recipes[recipe](learn, n, list(cbs))
        else:
            with learn.no_bar(),learn.no_logging(): recipes[recipe](learn, n, list(cbs))
    return out.getvalue()

def end(learn): return fingerprint(learn, 'history.csv' if (learn.path/'history.csv').exists() else None)
def resume(**kw): return Resume('run', ignore=Stop, **kw)
def saved(path): return sorted(f.name for f in (Path(path)/'models/run').glob('*.pth'))

_whole = {}
def whole(tmp_path, recipe, n, make, kw, bar=False):
    "The fingerprint of the run that nobody stops, without a `Resume`"
    key = (recipe, n, make, bar, str(sorted(kw.items(), key=str)))
    if key not in _whole:
        learn = make(tmp_path/'whole', **kw)
        fit(recipe, learn, n, bar=bar)
        _whole[key] = end(learn)
    return _whole[key]

def same_in_the_end(tmp_path, recipe, *stops, n=5, make=learner, bar=False, one_learner=False, **kw):
    "Stop at `stops`, each time calling again, in a new session (other seed) or with the same learner; compare with the run that nobody stops"
    want = whole(tmp_path, recipe, n, make, kw, bar)
    learn = make(tmp_path/'run', **kw)
    for s in stops:
        with pytest.raises(s.ex): fit(recipe, learn, n, resume(), s, bar=bar)
        if not one_learner: learn = make(tmp_path/'run', seed=99, **kw)
    fit(recipe, learn, n, resume(), bar=bar)
    have = end(learn)
    assert {k for k in want if want[k]!=have[k]}==set()
    return learn

two = Stop('after_batch', 1),Stop('after_epoch', 3, ex=ZeroDivisionError)
once = partial(same_in_the_end, n=3)   # for what is there in every batch, one stop tells as much as two

# --- the same in the end

def test_resume_changes_nothing(tmp_path):
    "A run that is saved is the run that is not"
    same_in_the_end(tmp_path, 'one_cycle')

@pytest.mark.parametrize('recipe', recipes)
def test_recipes(tmp_path, recipe): same_in_the_end(tmp_path, recipe, *two)

@pytest.mark.parametrize('event', Stop.inner)
def test_any_event_of_a_batch(tmp_path, event): once(tmp_path, 'accumulate', Stop(event, 1, batch=3)) # gradients are stepped in this one

@pytest.mark.every(2)
@pytest.mark.parametrize('epoch', [0,2,4])
@pytest.mark.parametrize('event', 'before_epoch before_train after_train before_validate after_validate after_epoch'.split())
def test_any_event_of_an_epoch(tmp_path, event, epoch): same_in_the_end(tmp_path, 'plateau', Stop(event, epoch))

@pytest.mark.parametrize('event', ['before_batch','after_batch'])
def test_in_validation(tmp_path, event): same_in_the_end(tmp_path, 'early', Stop(event, 1, batch=1, train=False))

def test_many_times(tmp_path): same_in_the_end(tmp_path, 'early', *[Stop('after_batch', e, batch=b) for e in range(4) for b in (0,3)])

@pytest.mark.every(3)
@pytest.mark.parametrize('recipe', ['flat_cos','plateau','early','accumulate'])
@pytest.mark.parametrize('bar', [False,True])
def test_in_a_notebook(tmp_path, recipe, bar):
    "Interrupted, and the cell run again on the same learner: its loggers, its optimizer and its weights are in the middle of things"
    same_in_the_end(tmp_path, recipe, *two, Stop('before_batch', 4, train=False, batch=0), one_learner=True, bar=bar)

@pytest.mark.parametrize('cbs', [[mix.MixUp], [mix.MixUp,mix.CutMix], [lambda: mix.CutMixUp(schedule=SchedLin(1,0))]])
@pytest.mark.parametrize('one_learner', [False,True])
def test_mixing(tmp_path, cbs, one_learner, monkeypatch):
    monkeypatch.setitem(recipes, 'mix', lambda learn,n,o: learn.fit_one_cycle(n, 1e-2, cbs=[*(f() for f in cbs), CSVLogger(), *o]))
    _whole.clear()
    same_in_the_end(tmp_path, 'mix', *two, one_learner=one_learner)

opts = dict(adamw=partial(OptimWrapper, opt=torch.optim.AdamW), torch_sgd=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9)),
            ranger=ranger, lamb=Lamb, larc=Larc, sgd=partial(SGD, mom=.9), rms=RMSProp)
@pytest.mark.parametrize('opt', opts)
def test_optimizers(tmp_path, opt): once(tmp_path, 'one_cycle' if opt in ('adamw','ranger') else 'flat_cos', two[0], opt_func=opts[opt])

@pytest.mark.parametrize('kw', [dict(workers=2), dict(plain=True), dict(plain=True, workers=2)], ids=str)
def test_loaders(tmp_path, kw): once(tmp_path, 'one_cycle', two[0], **kw)

def frozen(path, **kw):
    learn = learner(path, **kw)
    learn.freeze()
    return learn
def found(path, **kw):
    learn = learner(path, **kw)
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False)
    return learn
def trained(path, **kw):
    learn = learner(path, **kw)
    with learn.no_bar(),learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    return learn
def train_metrics(path, **kw):
    learn = learner(path, **kw)
    learn.recorder.train_metrics = True
    return learn
def bf16(path, **kw): return learner(path, **kw).to_bf16()
def fp16(path, **kw): return learner(path, **kw).to_fp16()

class CPUScaler(MixedPrecision):
    "fastai's mixed precision with what a CPU has, and a scale that overflows and grows"
    def before_fit(self):
        self.autocast,self.scales = torch.autocast('cpu', dtype=torch.bfloat16),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**120, growth_interval=3)
    def before_backward(self): self.learn.loss_grad = self.scaler.scale(64*self.loss_grad)
def scaled(path, **kw): return learner(path, cbs=CPUScaler(), **kw)

@saying('ignore:.*not available')
@saying('ignore:.*CUDA is not')
@pytest.mark.parametrize('make', [frozen,found,trained,train_metrics,bf16,fp16,scaled])
def test_learners(tmp_path, make): once(tmp_path, 'one_cycle', two[0], make=make)

def texts(): return [(TensorText(torch.randint(30, (n,), generator=torch.Generator().manual_seed(n))),torch.tensor(n%2)) for n in range(20, 44)]
class Words(nn.Module):
    def __init__(self, out, last):
        super().__init__()
        self.emb,self.rnn,self.out,self.last = nn.Embedding(30,8),nn.GRU(8,16,2,batch_first=True,dropout=.1),nn.Linear(16,out),last
    def forward(self, x):
        h = self.rnn(self.emb(x))[0]
        return self.out(h[:,-1] if self.last else h)
def language_model(path, seed=1, **kw):
    Path(path).mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    ds = [t[:1] for t in texts()]
    dls = DataLoaders(*[LMDataLoader(ds, bs=4, seq_len=10, shuffle=s) for s in (True,False)])
    return Learner(dls, Words(30, False), CrossEntropyLossFlat(), path=Path(path), metrics=accuracy, **kw)
def text_classifier(path, seed=1, **kw):
    Path(path).mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    dls = DataLoaders(*[SortedDL(texts(), bs=4, shuffle=s, before_batch=pad_input_chunk, num_workers=0) for s in (True,False)])
    return Learner(dls, Words(2, True), CrossEntropyLossFlat(), path=Path(path), metrics=accuracy, **kw)

@pytest.mark.parametrize('make', [language_model,text_classifier])
@pytest.mark.parametrize('one_learner', [False,True])
def test_texts(tmp_path, make, one_learner): once(tmp_path, 'flat_cos', two[0], make=make, one_learner=one_learner)

class Sometimes(nn.Module):
    "A branch that gets a gradient in some batches, and a buffer that its `state_dict` leaves out and that changes"
    def __init__(self):
        super().__init__()
        self.m,self.extra = model(),nn.Linear(64,10)
        self.register_buffer('n', torch.zeros(()), persistent=False)
    def forward(self, x):
        if self.training: self.n += 1
        out = self.m(x)*(1+self.n/100)
        return out+self.extra(x.flatten(1)) if self.n<4 or (self.n%13)==0 else out
def sometimes(path, seed=1, **kw):
    Path(path).mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    return Learner(loaders(), Sometimes(), CrossEntropyLossFlat(), path=Path(path), metrics=accuracy, cbs=Noise())
@pytest.mark.parametrize('recipe', ['one_cycle','accumulate'])
def test_gradients_and_buffers(tmp_path, recipe):
    "Parameters without a gradient in an epoch have one nevertheless, of zeros, and are stepped"
    same_in_the_end(tmp_path, recipe, Stop('after_batch', 2), Stop('before_epoch', 4), make=sometimes)

class Augment:
    def __init__(self): self.rng = np.random.default_rng(4)
class Own(Callback):
    "Generators and memory in all sorts of places"
    run_valid = False
    def __init__(self, rng, gain=1.): self.rng,self.gain,self.deep,self.torch,self.seen = rng,gain,Augment(),torch.Generator().manual_seed(3),L()
    def before_batch(self):
        if not hasattr(self, 'late'): self.late = np.random.default_rng(5)
        f = self.gain+.05*(self.rng.normal()+self.deep.rng.normal()+self.late.normal()+torch.randn(1, generator=self.torch).item())
        self.learn.xb = (self.x*f,)
        self.seen.append(f)
    def after_epoch(self):
        self.gain *= .9 # an argument that changes is not a setting
        if len(self.seen)>12: self.seen = self.seen[-12:]
class OwnState(Own):
    def state_dict(self): return {k:getattr(self, k) for k in ('gain','seen')} | {'rngs':[self.rng,self.deep.rng,self.__dict__.get('late'),self.torch]}
    def load_state_dict(self, s): self.rng,self.deep.rng,self.late,self.torch = s.pop('rngs'); self.__dict__.update(s)

@pytest.mark.parametrize('cls', [Own,OwnState])
def test_any_callback(tmp_path, cls, monkeypatch):
    "Two of a class, with generators of their own"
    monkeypatch.setitem(recipes, 'own', lambda learn,n,o: learn.fit_one_cycle(n, 1e-2, cbs=[cls(np.random.default_rng(1)), cls(np.random.RandomState(2)), *o]))
    _whole.clear()
    learn = same_in_the_end(tmp_path, 'own', *two)

lacking = dict(generators='losses', callbacks='losses', grads='weights', random='losses', progress='smooth', buffers='weights', model='weights', opt='weights', scaler='weights')
@pytest.mark.parametrize('what', lacking)
def test_each_part_is_needed(tmp_path, what, monkeypatch):
    "With another state of it in the checkpoint, each part shows in the end: the comparison sees it"
    make,recipe = (sometimes,'accumulate') if what in ('grads','buffers') else (scaled,'one_cycle')
    def other(part):
        if what in ('generators','callbacks','progress'): return {}
        if what=='random': return random_state()
        if what=='grads': return [None]*len(part)
        if what=='buffers': return {k:v+5 for k,v in part.items()}
        if what=='scaler': return {**part, 'scale':2.}
        learn = make(tmp_path/'other', seed=5)
        fit('one_cycle', learn, 1)
        return to_plain(getattr(learn, what).state_dict())
    def forget(folder):
        s = newest_checkpoint(folder)
        if s and s['done']:
            part = s['shared'] if what in s['shared'] else s['own'][0]
            part[what] = other(part[what])
        return s
    monkeypatch.setattr(R, 'newest_checkpoint', forget)
    want = whole(tmp_path, recipe, 3, make, {})
    with pytest.raises(KeyboardInterrupt): fit(recipe, make(tmp_path/'run'), 3, resume(), two[0])
    learn = make(tmp_path/'run', seed=99)
    fit(recipe, learn, 3, resume())
    have = end(learn)
    assert lacking[what] in {k for k in want if want[k]!=have.get(k)}

# --- killed

def child(f):
    "Run `f` in a forked process; its exit status, negative for a signal"
    pid = os.fork()
    if not pid:
        code = 1
        try:
            torch.set_num_threads(1)
            f()
            code = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def die(): os.kill(os.getpid(), signal.SIGKILL)

def run_in(path, recipe='early', seed=99, n=5, workers=0):
    learn = learner(path, seed=seed, workers=workers)
    fit(recipe, learn, n, resume())
    return learn

def before(o, name, when=lambda *a: True, after=False):
    "Die when `o.name` is called, at the end of it if `after`"
    f = getattr(o, name)
    def dying(*args, **kw):
        if when(*args) and not after: die()
        res = f(*args, **kw)
        if when(*args): die()
        return res
    setattr(o, name, dying)

def writes_3(fd_or_path, *args):
    p = os.readlink(f'/proc/self/fd/{fd_or_path}') if isinstance(fd_or_path, int) else str(fd_or_path)
    return 'epoch_0003' in p

def half_written():
    fsync = os.fsync
    def f(fd):
        if writes_3(fd):
            os.ftruncate(fd, os.fstat(fd).st_size//2)
            die()
        fsync(fd)
    os.fsync = f

moments = dict(
    first_checkpoint=lambda: before(os, 'replace', lambda a,b: 'epoch_0000' in str(b)),
    row_written=lambda: before(Resume, '_save', lambda self,done,*a: done==3),
    half_written=half_written,
    written=lambda: before(os, 'fsync', writes_3, after=True),
    before_rename=lambda: before(os, 'replace', writes_3),
    renamed=lambda: before(os, 'replace', writes_3, after=True),
    old_deleted=lambda: before(R, 'checkpoint_files', lambda folder: (folder/'epoch_0003.pth').exists()),
    run_is_over=lambda: before(Recorder, 'after_fit', lambda self: True) if hasattr(Recorder, 'after_fit') else before(SaveModelCallback, 'after_fit'))

@linux
@pytest.mark.every(3)
@pytest.mark.parametrize('moment', moments)
def test_killed_while_saving(tmp_path, moment):
    "SIGKILL at each step of writing a checkpoint, and again when the run is continued"
    want = whole(tmp_path, 'early', 5, learner, {})
    def run():
        moments[moment]()
        run_in(tmp_path/'run', seed=1)
    assert child(run)==-signal.SIGKILL
    if moment in ('half_written','written','before_rename'): assert list((tmp_path/'run/models/run').glob('.*.tmp')) and 'epoch_0002.pth' in saved(tmp_path/'run')
    def again():
        before(RunHistory, 'write') # CSVLogger has just emptied its file
        run_in(tmp_path/'run', seed=1 if moment=='first_checkpoint' else 99)
    assert child(again)==-signal.SIGKILL
    learn = learner(tmp_path/'run', seed=1 if moment=='first_checkpoint' else 98) # nothing was saved: the same weights to begin with
    fit('early', learn, 5, resume())
    assert end(learn)==want
    assert not list((tmp_path/'run/models/run').glob('.*'))

@pytest.mark.every(2)
@pytest.mark.parametrize('recipe,workers', [('one_cycle',0), ('plateau',0), ('accumulate',2)])
def test_killed_at_random(tmp_path, recipe, workers):
    "SIGKILL at random moments; with workers too, whose end nobody waits for"
    n = 12 if not workers else 4
    want,rng = whole(tmp_path, recipe, n, learner, dict(workers=workers)),random.Random(recipe)
    kills = 0
    for i in range(40):
        if (pid := os.fork())==0:
            try: run_in(tmp_path/'run', recipe, 1 if not saved(tmp_path/'run') else 50+i, n, workers)
            finally: os._exit(0)
        time.sleep(rng.uniform(.02, .3 if not workers else .6))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==-signal.SIGKILL
        if kills==4: break
    learn = run_in(tmp_path/'run', recipe, 1 if not saved(tmp_path/'run') else 97, n, workers)
    assert end(learn)==want and kills>=2

def test_killed_program(tmp_path):
    "A program killed, and started again in a fresh interpreter"
    for o in ('a','b'): (tmp_path/o).mkdir()
    train(tmp_path/'a', 'one_cycle', 12, resume=None)
    if not (pid := os.fork()):
        try: train(tmp_path/'b', 'one_cycle', 12)
        finally: os._exit(1)
    while not os.waitpid(pid, os.WNOHANG)[0] and 'epoch_0004.pth' not in saved(tmp_path/'b'): time.sleep(.002)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==-signal.SIGKILL
    assert subprocess.run([sys.executable, str(Path(__file__).parent/'longrun.py'), str(tmp_path/'b'), 'one_cycle', '12'], stdout=subprocess.DEVNULL).returncode==0
    assert (tmp_path/'a/end.json').read_bytes()==(tmp_path/'b/end.json').read_bytes()

@pytest.mark.parametrize('step,n', [('fsync',5), ('fsync',6), ('replace',4)]) # the file, the folder
def test_interrupted_while_saving(tmp_path, monkeypatch, step, n):
    "A KeyboardInterrupt in the middle of writing: no file is left, the checkpoint before is whole, the same learner goes on"
    learn,f,calls = learner(tmp_path/'run'),getattr(os, step),[]
    def interrupt(*args):
        calls.append(1)
        if len(calls)==n: raise KeyboardInterrupt
        return f(*args)
    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt): fit('accumulate', learn, 5, resume(keep=9))
    monkeypatch.undo()
    files = saved(tmp_path/'run')
    assert 0<len(files)<6 and not list((tmp_path/'run/models/run').glob('.*'))
    for f in files: read_checkpoint(tmp_path/'run/models/run'/f)
    fit('accumulate', learn, 5, resume(keep=9))
    assert end(learn)==whole(tmp_path, 'accumulate', 5, learner, {})

# --- damaged

def stopped(path, recipe='early', epoch=3, **kw):
    "A run that was interrupted in `epoch`"
    learn = learner(path, **kw)
    with pytest.raises(KeyboardInterrupt): fit(recipe, learn, 5, resume(), Stop('after_batch', epoch))
    return learn

@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
    d = tmp_path_factory.mktemp('stopped')
    stopped(d)
    return d

@pytest.fixture
def stopped_run(interrupted, tmp_path):
    "A copy of a run that was interrupted in epoch 3"
    return shutil.copytree(interrupted, tmp_path/'run')

def flip(f, at):
    b = bytearray(f.read_bytes())
    b[at] ^= 1
    f.write_bytes(b)

@pytest.mark.parametrize('damage', ['empty','head','half','all but the last byte','flip first','flip middle','flip last'])
def test_damaged(tmp_path, stopped_run, damage):
    "The checkpoint before is taken, and the end is the same"
    assert saved(tmp_path/'run')==['epoch_0002.pth','epoch_0003.pth']
    f = tmp_path/'run/models/run/epoch_0003.pth'
    n = f.stat().st_size
    if damage.startswith('flip'): flip(f, dict(first=0, middle=n//2, last=n-1)[damage[5:]])
    else: os.truncate(f, {'empty':0, 'head':50, 'half':n//2}.get(damage, n-1))
    learn = learner(tmp_path/'run', seed=99)
    with pytest.warns(UserWarning, match=r'epoch_0003.pth is damaged.*the one before it is taken'): out = fit('early', learn, 5, resume())
    assert 'continues after 2 of 5 epochs' in out
    assert end(learn)==whole(tmp_path, 'early', 5, learner, {})
    assert (f.parent/'epoch_0003.pth.damaged').stat().st_size<=n

def test_every_bit(tmp_path):
    "A flip of any bit is noticed"
    f = tmp_path/'a.pth'
    write_checkpoint(f, {'a':torch.arange(3)})
    good,rng = f.read_bytes(),random.Random(0)
    for i in [*range(40), *range(len(good)-110, len(good)), *(rng.randrange(len(good)) for _ in range(200))]:
        bad = bytearray(good)
        bad[i] ^= 1<<rng.randrange(8)
        f.write_bytes(bad)
        with pytest.raises(ValueError, match='damaged'): read_checkpoint(f)

def test_all_damaged(tmp_path, stopped_run):
    "Rather than quietly begin again, stop"
    for f in saved(tmp_path/'run'): flip(tmp_path/'run/models/run'/f, 99)
    with pytest.warns(UserWarning, match='damaged'), pytest.raises(ValueError, match='No checkpoint.*resume=False'):
        fit('early', learner(tmp_path/'run'), 5, resume())

class Evil:
    def __reduce__(self): return os.mkdir, ('evil',)

def test_runs_no_code(tmp_path, stopped_run, monkeypatch):
    "A checkpoint with code in it is refused, though its checksum is right; and ours need no exception from the rule"
    monkeypatch.chdir(tmp_path)
    f = tmp_path/'run/models/run/epoch_0003.pth'
    state = torch.load(f, weights_only=True) # without our reader
    assert state['done']==3
    write_checkpoint(f, {**state, 'evil':Evil()})
    with pytest.raises(ValueError, match='epoch_0003.pth holds no checkpoint') as e: fit('early', learner(tmp_path/'run'), 5, resume())
    assert not (tmp_path/'evil').exists() and '\n' not in str(e.value)

# --- another run

def wide(path, **kw): return learner(path, width=12, **kw)
def other_dropout(path, **kw):
    learn = learner(path, **kw)
    learn.model[4].p = .5
    return learn
def mse(path, **kw):
    learn = learner(path, **kw)
    learn.loss_func = CrossEntropyLossFlat(label_smoothing=.1)
    return learn
def weighted(path, **kw):
    learn = learner(path, **kw)
    learn.loss_func = CrossEntropyLossFlat(weight=torch.arange(10.))
    return learn
def call(n=5, lr=1e-2, cbs=(mix.MixUp,), **kw): return lambda learn: learn.fit_one_cycle(n, lr, cbs=[f() for f in cbs]+[CSVLogger(), resume()], **kw)
def flat(learn): learn.fit_flat_cos(5, 1e-2, cbs=[mix.MixUp(), CSVLogger(), resume()])
def constant(learn): learn.fit(5, 1e-2, cbs=[mix.MixUp(), CSVLogger(), resume()])

others = dict(
    epochs=(learner, call(6), 'epochs: 6 here, 5 in the checkpoint'), lr=(learner, call(lr=2e-2), r'schedule, lr, 0%: \[0.0008.*\] here, \[0.0004'),
    moms=(learner, call(moms=(.9,.8,.9)), 'schedule, mom'), pct_start=(learner, call(pct_start=.3), 'schedule, lr'),
    div=(learner, call(div=10.), 'schedule, lr, 0%'), slices=(learner, call(lr=slice(1e-3,1e-2)), 'schedule, lr'),
    flat=(learner, flat, 'schedule, lr, 0%'), no_schedule=(learner, constant, 'callbacks: ParamScheduler is only in the checkpoint'),
    wd=(learner, call(wd=.2), r'optimizer, wd: \[0.2, 0.2\] here, \[0.01, 0.01\] in the checkpoint'),
    model=(wide, call(), r'model, 0.weight: float32 \(12, 1, 3, 3\) here, float32 \(8, 1, 3, 3\) in the checkpoint'),
    dropout=(other_dropout, call(), r'layers: \(4\): Dropout\(p=0.5.* here, \(4\): Dropout\(p=0.2'),
    frozen=(frozen, call(), 'model, 0.weight: .*frozen here'),
    data=(partial(learner, n=384), call(), 'data, train, batches: 6 here, 5 in the checkpoint'),
    items=(partial(learner, n=300), call(), 'data, train, items: 300 here, 320 in the checkpoint'),
    batch=(partial(learner, bs=32), call(), 'data, train, batch size: 32 here, 64 in the checkpoint'),
    opt=(partial(learner, opt_func=SGD), call(), 'optimizer, made by: SGD'), eps=(partial(learner, opt_func=partial(Adam, eps=1e-3)), call(), 'optimizer.*eps'),
    wrapped=(partial(learner, opt_func=opts['adamw']), call(), 'optimizer, class: OptimWrapper here, Optimizer in the checkpoint'),
    groups=(partial(learner, splitter=trainable_params), call(), r'optimizer, parameters in groups: \[8\] here, \[4, 4\]'),
    loss=(mse, call(), 'loss function: .*label_smoothing=0.1.* here'), weights=(weighted, call(), 'loss function: .*weight='),
    alpha=(learner, call(cbs=[lambda: mix.MixUp(alpha=1.)]), 'callbacks, MixUp, alpha: 1.0 here, 0.4 in the checkpoint'),
    prob=(learner, call(cbs=[lambda: mix.MixUp(prob=.5)]), 'callbacks, MixUp, prob: 0.5 here'),
    mixing_schedule=(learner, call(cbs=[lambda: mix.MixUp(schedule=SchedLin(1,0))]), 'callbacks, MixUp, schedule'),
    other_mix=(learner, call(cbs=[mix.CutMix]), 'callbacks: CutMix is not in the checkpoint'), no_mix=(learner, call(cbs=[]), 'MixUp is only in the checkpoint'),
    more=(learner, call(cbs=[mix.MixUp, EarlyStoppingCallback]), 'EarlyStoppingCallback is not in the checkpoint'),
    precision=(bf16, call(), 'callbacks: MixedPrecision is not'), accumulate=(learner, call(cbs=[mix.MixUp, GradientAccumulation]), 'GradientAccumulation is not'))

@pytest.fixture(scope='module')
def almost(tmp_path_factory):
    "A run of `call` that was interrupted in its last epoch"
    learn = learner(tmp_path_factory.mktemp('almost'))
    with learn.no_bar(),learn.no_logging(),pytest.raises(KeyboardInterrupt): call(cbs=[mix.MixUp, lambda: Stop('after_batch', 4)])(learn)
    return learn.path

@saying('ignore:.*not available')
@pytest.mark.parametrize('what', others)
def test_refused(tmp_path, almost, what):
    "Refused, the difference named; files, weights and the learner as they were; the right call still continues"
    make,wrong,says = others[what]
    shutil.copytree(almost, tmp_path, dirs_exist_ok=True)
    files = {f:f.read_bytes() for f in tmp_path.rglob('*') if f.is_file() and f.name!='lock'}
    learn = make(tmp_path)
    weights,f,out = digest(learn.model.state_dict()),learn.loss_func,io.StringIO()
    with learn.no_bar(),learn.no_logging(),redirect_stdout(out),pytest.raises(ValueError, match=says) as e: wrong(learn)
    assert "Resume('run')" in str(e.value) and 'resume=False' in str(e.value)
    assert {f:f.read_bytes() for f in tmp_path.rglob('*') if f.is_file() and f.name!='lock'}==files
    assert digest(learn.model.state_dict())==weights and learn.loss_func is f
    with learn.no_bar(),learn.no_logging(): learn.fit(1) # no trace of the refused call
    learn = learner(tmp_path)
    with learn.no_bar(),learn.no_logging(),redirect_stdout(out): call()(learn)
    assert 'continues after 4 of 5' in out.getvalue() and len(learn.recorder.values)==5

def listed(idxs): return [(torch.full((1,8,8), i/100),i%10) for i in idxs]
def subset(idxs): return torch.utils.data.Subset(listed(range(400)), idxs)
def tensors(idxs): return torch.utils.data.TensorDataset(torch.zeros(len(idxs),1,8,8), torch.tensor(idxs)%10)
def paths(idxs): return Datasets([Path(f'somewhere/{i%10}/{i}.png') for i in idxs], [lambda o: torch.zeros(1,8,8), lambda o: int(o.parent.name)])

@pytest.mark.parametrize('kind', [listed,subset,tensors,paths])
def test_other_items(tmp_path, kind):
    "As many items, but others: a random split without a seed"
    def fit(train):
        dls = DataLoaders(*[DataLoader(kind(o), bs=64) for o in (train, range(320,400))], path=tmp_path)
        with redirect_stdout(io.StringIO()) as out, (learn := learner(tmp_path, dls=dls)).no_bar(),learn.no_logging(): learn.fit(2, cbs=resume())
        return out.getvalue()
    fit([*range(320)])
    with pytest.raises(OtherRun, match=r'train, checksum of the items: \w{16} here, \w{16} in the checkpoint\n.*RandomSplitter\(seed=42\)'): fit([*range(1,321)])
    if kind is paths: # another machine lists them so
        with pytest.raises(OtherRun, match=r'train, order of the items: .*\n.*Sort what a folder lists: .*sorted'): fit([*range(319,-1,-1)])

def testchecksum_items():
    "Only what another machine would have as well counts: no folders above, no floats; and the order of files where it is asked for"
    assert checksum_items(['a/1','a/2'], ordered=True)!=checksum_items(['a/2','a/1'], ordered=True)
    a,b = ([Path(f)/f'{i}.png' for i in range(9)] for f in ('/a/cat','b/cat'))
    assert checksum_items(a)==checksum_items(L(b[::-1]))==checksum_items(['x\\cat\\'+f.name for f in a])!=checksum_items(a[1:])
    assert checksum_items([(f,torch.rand(2),i) for i,f in enumerate(a)])==checksum_items([(f,torch.rand(2),i) for i,f in enumerate(b)])!=checksum_items([(f,torch.rand(2),8-i) for i,f in enumerate(a)])
    df = pd.DataFrame(dict(x=np.random.rand(9), y=[0,1,2]*3))
    assert checksum_items(df)==checksum_items(df*2)!=checksum_items(df[1:])
    assert checksum_items(torch.arange(9))!=checksum_items(torch.arange(1,10)) and checksum_items(np.arange(9))==checksum_items(range(9))!=checksum_items(range(1,10))
    assert all(checksum_items(o) is None for o in (None, iter([1]), {1:2}, object()))

def test_first_epoch_is_not_a_run(tmp_path):
    "Stopped before an epoch was done, one may think again"
    stopped(tmp_path, epoch=0)
    learn = learner(tmp_path)
    fit('one_cycle', learn, 2, resume())
    assert len(learn.recorder.values)==2 and saved(tmp_path)==['epoch_0001.pth','epoch_0002.pth']

def test_shows_may_come_and_go(tmp_path, monkeypatch):
    "Callbacks that show or log belong to no run; nor does what is ignored"
    stopped(tmp_path, 'flat_cos')
    monkeypatch.setitem(recipes, 'shown', lambda learn,n,o: learn.fit_flat_cos(n, 5e-3, cbs=[ShowGraphCallback(), *o]))
    learn = learner(tmp_path, seed=9)
    fit('shown', learn, 5, resume(), bar=True)
    assert len(learn.recorder.values)==5

def test_environment_is_told(tmp_path):
    stopped(tmp_path, 'one_cycle')
    torch.set_num_threads(2)
    assert 'goes on with threads 2 (was 1), so not bit by bit' in fit('one_cycle', learner(tmp_path), 5, resume())

def test_newer_format(tmp_path):
    stopped(tmp_path, 'one_cycle')
    f = tmp_path/'models/run/epoch_0003.pth'
    for n,says in ((3,'newer'), (1,r"written by fastmix 0.1: .*resume='weights'"), (None,'newer')):
        write_checkpoint(f, {**read_checkpoint(f), 'format':n})
        with pytest.raises(ValueError, match=says) as e: fit('one_cycle', learner(tmp_path), 5, resume())
        assert '\n' not in str(e.value)

# --- finished, afresh, paused

@pytest.mark.parametrize('recipe', ['one_cycle','early','plateau'])
def test_finished(tmp_path, recipe):
    "Says so, trains no more, and brings back weights, optimizer, history and random numbers, as often as it is called"
    want,learn = whole(tmp_path, recipe, 6, learner, {}),learner(tmp_path/'run')
    fit(recipe, learn, 6, resume())
    assert end(learn)==want
    files = {f:f.stat().st_mtime_ns for f in (tmp_path/'run/models/run').glob('*.pth')}
    for seed in (5,6):
        learn = learner(tmp_path/'run', seed=seed)
        def forbid(*args): raise AssertionError('trained')
        learn.one_batch = forbid
        out = fit(recipe, learn, 6, resume())
        del learn.one_batch
        assert ('was ended after 5 of 6' if recipe=='early' else 'is finished, 6 of 6') in out
        assert end(learn)==want
    assert {f:f.stat().st_mtime_ns for f in (tmp_path/'run/models/run').glob('*.pth')}==files
    with learn.no_bar(),learn.no_logging(): learn.fit(1) # and the learner is free for another fit
    assert len(learn.recorder.values)==1

def test_plots_and_table(tmp_path):
    "The recorder's pictures and the table of a resumed run are whole"
    import matplotlib
    matplotlib.use('agg')
    stopped(tmp_path, 'one_cycle')
    learn = learner(tmp_path)
    out = fit('one_cycle', learn, 5, resume(), bar=True)
    ax = learn.recorder.plot_loss(show_epochs=True)
    assert len(ax.lines[0].get_xdata())==20 and list(learn.recorder.iters)==[5,10,15,20,25]
    learn.recorder.plot_sched()
    rows = [l for l in out.splitlines() if re.match(r'\d ', l.rpartition('\r')[2].strip())]
    assert len(rows)==5
    plt.close('all')

def test_afresh(tmp_path):
    "`resume=False` begins again and keeps what was there"
    learn = learner(tmp_path)
    fit('one_cycle', learn, 3, resume())
    old,first = {f:(tmp_path/'models/run'/f).read_bytes() for f in saved(tmp_path)},digest(learn.recorder.losses)
    for i in (1,2):
        learn = learner(tmp_path)
        assert 'continues' not in fit('one_cycle', learn, 3, resume(resume=False))
        assert len(learn.recorder.values)==3 and digest(learn.recorder.losses)==first
        assert {f.name:f.read_bytes() for f in (tmp_path/f'models/run/old_1').glob('*.pth')}==old
    assert [len((tmp_path/f'models/run/old_{i}/history.csv').read_text().splitlines()) for i in (1,2)]==[4,4] # the history is kept as well

@pytest.mark.parametrize('keep', [1,2,3])
def test_keep(tmp_path, keep):
    fit('one_cycle', learner(tmp_path), 4, resume(keep=keep))
    assert saved(tmp_path)==[f'epoch_000{i}.pth' for i in range(5-keep, 5)]

def test_every_min(tmp_path, monkeypatch):
    "When the time has come, between two batches, and at the end"
    times = []
    write = R.write_checkpoint
    monkeypatch.setattr(R, 'write_checkpoint', lambda path, state: (times.append((state['done'],state['batch'])), write(path, state)))
    fit('one_cycle', learner(tmp_path/'a'), 4, resume(every_min=10))
    assert times==[(0,0),(4,0)]
    times.clear()
    fit('one_cycle', learner(tmp_path/'b'), 2, resume(every_min=0))
    assert times==[(e,b) for e in range(2) for b in range(6)]+[(2,0)]
    times.clear()
    now = [1e9]
    monkeypatch.setattr(R.time, 'monotonic', lambda: now.__setitem__(0, now[0]+4) or now[0]) # each look at the clock takes 4 s
    learn = learner(tmp_path/'c')
    with pytest.raises(KeyboardInterrupt): fit('early', learn, 5, resume(every_min=1.), Stop('after_batch', 4))
    monkeypatch.undo()
    assert 3<len(times)<20 and any(b for _,b in times)
    done,batch = times[-1]
    assert f'continues after {done} of 5 epochs'+f' and {batch} of 5 batches'*(batch>0) in fit('early', learn, 5, resume(every_min=1.))
    assert end(learn)==whole(tmp_path, 'early', 5, learner, {})

class PauseAt(Callback):
    def __init__(self, epoch): self.at = epoch
    def after_batch(self):
        if self.epoch==self.at: self.learn.resume.pause()

@pytest.mark.parametrize('every_min', [None,1000])
def test_pause(tmp_path, every_min):
    "At the end of the epoch; where a run is saved between batches, after the batch"
    want,learn = whole(tmp_path, 'early', 5, learner, {}),learner(tmp_path/'run')
    cb = Resume('run', ignore=(Stop,PauseAt), every_min=every_min)
    says,rows,file = ('2 of 5 epochs;',2,'epoch_0002.pth') if every_min is None else ('1 of 5 epochs and 1 of 5 batches',1,'epoch_0001_batch_000001.pth')
    assert 'pauses after '+says in fit('early', learn, 5, cb, PauseAt(1)) and cb.paused
    assert len(learn.recorder.values)==rows and file in saved(tmp_path/'run')
    learn = learner(tmp_path/'run', seed=4)
    fit('early', learn, 5, cb) # the same object, and it does not pause again
    assert end(learn)==want and not cb.paused

def test_pause_before_the_fit(tmp_path):
    "A signal may come while a run is looked for on disk: it counts, once"
    want,learn,cb = whole(tmp_path, 'early', 5, learner, {}),learner(tmp_path/'run'),Resume('run')
    cb.pause()
    assert 'pauses after 1 of 5 epochs;' in fit('early', learn, 5, cb) and cb.paused
    fit('early', learn, 5, cb)
    assert end(learn)==want and not cb.paused

@pytest.mark.parametrize('event', ['after_batch','before_validate','after_train'])
def test_cancelled_fit_is_not_finished(tmp_path, event):
    "CancelFitException in the middle of an epoch ends the fit, not the run"
    learn = learner(tmp_path/'run')
    fit('early', learn, 5, resume(), Stop(event, 2, ex=CancelFitException))
    assert len(learn.recorder.values)==2 and saved(tmp_path/'run')[-1]=='epoch_0002.pth'
    learn = learner(tmp_path/'run', seed=4)
    fit('early', learn, 5, resume())
    assert end(learn)==whole(tmp_path, 'early', 5, learner, {})

@pytest.mark.parametrize('ex,event', [(CancelEpochException,'after_batch'), (CancelTrainException,'after_batch'), (CancelValidException,'before_validate'), (CancelBatchException,'after_pred')])
def test_cancelled_parts(tmp_path, ex, event, monkeypatch):
    "A part that a callback cancels is cancelled in the resumed run too"
    class Cancel(Stop): pass
    monkeypatch.setitem(recipes, 'cancel', lambda learn,n,o: learn.fit_one_cycle(n, 1e-2, cbs=[Cancel(event, 2, ex=ex), CSVLogger(), *o]))
    _whole.clear()
    want = whole(tmp_path, 'cancel', 5, learner, {})
    learn = learner(tmp_path/'run')
    cb = Resume('run', ignore=Stop)
    with pytest.raises(KeyboardInterrupt): fit('cancel', learn, 5, cb, Stop('after_batch', 3))
    learn = learner(tmp_path/'run', seed=8)
    fit('cancel', learn, 5, cb)
    assert end(learn)==want

# --- history.csv

def test_append(tmp_path, monkeypatch):
    "A file that is appended to keeps what other fits have written"
    monkeypatch.setitem(recipes, 'append', lambda learn,n,o: learn.fit_one_cycle(n, 1e-2, cbs=[CSVLogger(append=True), *o]))
    f,text = tmp_path/'history.csv','something\n1,2,3\n'
    f.write_text(text)
    learn = learner(tmp_path)
    with pytest.raises(KeyboardInterrupt): fit('append', learn, 5, resume(), Stop('after_epoch', 2)) # after the row, before the checkpoint
    fit('append', learner(tmp_path), 5, resume())
    lines = f.read_text()[len(text):].splitlines()
    assert f.read_text().startswith(text) and [l.split(',')[0] for l in lines]==['epoch','0','1','2','3','4']
    f.write_text(f.read_text()+'another fit\n')
    fit('append', learner(tmp_path), 5, resume()) # finished: nothing of the others is lost
    assert 'something' in f.read_text()

def test_two_names_for_one_file(tmp_path):
    "Rows of a killed run are not lost while another one uses the same file"
    stopped(tmp_path, 'flat_cos')
    fit('flat_cos', learner(tmp_path), 2, Resume('other'))
    learn = learner(tmp_path)
    fit('flat_cos', learn, 5, resume())
    assert [l.split(',')[0] for l in (tmp_path/'history.csv').read_text().splitlines()]==['epoch','0','1','2','3','4']

# --- disks and folders

@contextmanager
def file_limit(n):
    "Files of this process may have `n` bytes"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, old[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)

def test_no_room(tmp_path):
    "The system writes a part of the file and refuses the rest: a clear error, the checkpoint before is whole, nothing is left lying about"
    learn = stopped(tmp_path/'run', 'accumulate')
    size = (tmp_path/'run/models/run/epoch_0003.pth').stat().st_size
    learn = learner(tmp_path/'run')
    with file_limit(size//2),pytest.raises(OSError, match=r"Resume\('run'\) cannot write .*epoch_0004.pth.*What is saved already is whole") as e: fit('accumulate', learn, 5, resume())
    assert e.value.errno==errno.EFBIG
    assert saved(tmp_path/'run')==['epoch_0002.pth','epoch_0003.pth'] and not list((tmp_path/'run/models/run').glob('.*'))
    fit('accumulate', learn, 5, resume())
    assert end(learn)==whole(tmp_path, 'accumulate', 5, learner, {})

def test_no_folder(tmp_path):
    "Noticed before anything is trained"
    (tmp_path/'models').write_text('a file')
    learn = learner(tmp_path)
    with pytest.raises(OSError, match=r"Resume\('run'\) cannot write"): fit('accumulate', learn, 5, resume())
    assert learn.recorder.losses==[]

@contextmanager
def not_root():
    "Root may write everywhere, so be somebody else"
    root = os.geteuid()==0
    if root: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)

def test_read_only():
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        stopped(d, 'accumulate')
        folder,learn = Path(d)/'models/run',learner(d)
        folder.chmod(0o555)
        try:
            with not_root(),pytest.raises(PermissionError, match=r"Resume\('run'\) cannot write"): fit('accumulate', learn, 5, resume())
        finally: folder.chmod(0o755)
        assert saved(d)==['epoch_0002.pth','epoch_0003.pth']
        fit('accumulate', learner(d), 5, resume())

# --- one at a time

def test_two_processes(tmp_path):
    "A second process is told which one is there; the lock of a killed one is gone, though its workers live on"
    a,b = os.pipe()
    pid = os.fork()
    if not pid:
        def wait(self):
            os.write(b, b'x')
            time.sleep(60)
        Noise.after_epoch = wait
        try: run_in(tmp_path, workers=1)
        finally: os._exit(1)
    assert os.read(a, 1)==b'x'
    try:
        with pytest.raises(RuntimeError, match=f'Process {pid} .* is training into'): run_in(tmp_path)
        assert not files.locked_folders
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(run_in(tmp_path).recorder.values)==5

def test_two_learners(tmp_path):
    class Inner(Callback):
        def after_epoch(self):
            with pytest.raises(RuntimeError, match='Another learner of this process'): run_in(tmp_path)
    fit('one_cycle', learner(tmp_path), 2, Resume('run', ignore=Inner), Inner())
    fit('one_cycle', learner(tmp_path), 2, resume())
    assert not files.locked_folders

# --- a callback of the learner

def test_of_the_learner(tmp_path):
    "A `Resume` among the learner's own callbacks acts in fits only"
    learn = learner(tmp_path, cbs=resume())
    fit('one_cycle', learn, 3)
    files,weights = {f:f.stat().st_mtime_ns for f in tmp_path.rglob('*.pth')},digest(learn.model.state_dict())
    with learn.no_bar(),learn.no_logging(),warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=6, show_plot=False)
        with learn: learn('before_train')
    assert digest(learn.model.state_dict())==weights
    assert {f:f.stat().st_mtime_ns for f in tmp_path.rglob('epoch*.pth')}==files
    with learn.no_bar(): assert 'is finished' in fit('one_cycle', learn, 3)

def test_one_learner_interrupted_then_validated(tmp_path):
    "What follows an interruption is not taken for the run"
    learn = learner(tmp_path, cbs=resume())
    with pytest.raises(KeyboardInterrupt): fit('flat_cos', learn, 3, Stop('after_batch', 1))
    files = {f:f.read_bytes() for f in tmp_path.rglob('epoch*.pth')}
    with learn.no_bar(): learn.validate()
    assert {f:f.read_bytes() for f in tmp_path.rglob('epoch*.pth')}==files

def test_without(tmp_path, monkeypatch):
    "Without a `Resume` the loop is fastai's own"
    learn,calls = learner(tmp_path),[]
    monkeypatch.setattr(Resume, 'run_epochs', lambda self: calls.append(self))
    with learn.no_bar(),learn.no_logging(): learn.fit(1)
    assert calls==[] and len(learn.recorder.values)==1

def test_replaced_loop(tmp_path):
    "A loop that is not ours cannot be resumed, and it is said"
    class Other(Learner):
        def _do_fit(self):
            for self.epoch in range(self.n_epoch): self._with_events(self._do_epoch, 'epoch', CancelEpochException)
    learn = Other(loaders(), model(), CrossEntropyLossFlat(), path=tmp_path)
    with learn.no_bar(),learn.no_logging(),pytest.warns(UserWarning, match='does not save'): learn.fit(1, cbs=Resume('run'))

def test_two_resumes(tmp_path):
    learn = learner(tmp_path)
    with pytest.raises(ValueError, match='one Resume, not 2: a, b'): fit('one_cycle', learn, 2, Resume('a'), Resume('b'))

def test_start_epoch(tmp_path):
    learn = learner(tmp_path)
    with pytest.raises(ValueError, match='leave start_epoch out'): learn.fit(3, start_epoch=1, cbs=resume())

def test_pickles(tmp_path):
    "As the callbacks of a learner do that is exported"
    learn = learner(tmp_path, cbs=resume())
    fit('one_cycle', learn, 2)
    cb = pickle.loads(pickle.dumps(learn.resume))
    assert (cb.run_name,cb.keep)==('run',2)

@pytest.mark.parametrize('kw,says', [(dict(name=''),'name'), (dict(name=None),'name'), (dict(name='../a'),'name'), (dict(name='/a'),'name'), (dict(name='.'),'name'),
    (dict(every_min=-1),'every_min=-1'), (dict(every_min='1'),"every_min='1'"), (dict(every_min=True),'every_min=True'), (dict(every_min=float('nan')),'every_min=nan'), (dict(max_minutes=-1),'max_minutes=-1'),
    (dict(keep=0),'keep=0'), (dict(keep=1.5),'keep=1.5'), (dict(resume='no'),"resume='no'"), (dict(ignore='a'),'ignore'), (dict(ignore=[3]),'ignore')], ids=str)
def test_arguments(kw, says):
    with pytest.raises(ValueError, match=says): Resume(**{'name':'run', **kw})

# --- plain values

class Odd:
    def __init__(self): self.n = 0
    def state_dict(self): return {'n':self.n}
    def load_state_dict(self, s): self.n = s['n']

values = [None, True, 3, -2**200, 2.5, float('inf'), 'é\n', [], (), {}, L(), [1,[2.,('a',)]], {'a':{1:2}}, {1,2}, {(1,2):3, 'a':np.arange(2)}, frozenset([1]), deque([1,2], maxlen=3), Counter('aab'), b'ab', bytearray(b'ab'), 1+2j, os.fsdecode(b'caf\xe9'), {os.fsdecode(b'\xe9'):1}, L(1,2), (L(1.),), [.1]*20, L([.1]*20), tuple([.1]*20),
          [np.float64(.1)]*20, [np.float32(.1)]*3, np.float32(.1), np.int8(3), np.bool_(True), np.arange(6).reshape(2,3), np.zeros((0,2), 'f4'), np.asfortranarray(np.arange(6.).reshape(2,3)),
          np.array('a'), torch.arange(3), torch.tensor(2., dtype=torch.bfloat16), [torch.tensor(float(i)) for i in range(20)], [torch.arange(2)]*20, torch.zeros(0,3), Path('a/b'), OrderedDict(b=1, a=2)]
@pytest.mark.parametrize('o', values, ids=lambda o: f'{type(o).__name__} {str(o)[:20]}')
def test_values(o):
    "Through a file and back: the same value, of the same type"
    b = io.BytesIO()
    torch.save(to_plain(o), b)
    p = from_plain(torch.load(io.BytesIO(b.getvalue()), weights_only=True))
    def same(a, b):
        assert type(a)==type(b)
        if isinstance(a, (list,tuple,L)):
            assert len(a)==len(b)
            for x,y in zip(a, b): same(x, y)
        elif isinstance(a, dict):
            assert list(a)==list(b)
            for k in a: same(a[k], b[k])
        elif isinstance(a, deque): assert a==b and a.maxlen==b.maxlen
        elif isinstance(a, torch.Tensor): assert a.dtype==b.dtype and torch.equal(a, b)
        elif isinstance(a, (np.ndarray,np.generic)): assert a.dtype==b.dtype and a.shape==b.shape and np.array_equal(a, b)
        else: assert a==b
    same(o, p)

def test_filled_in_place():
    p,m,odd = nn.Parameter(torch.ones(2)),nn.Linear(2,2),Odd()
    odd.n = 3
    o = dict(p=p, m=m, odd=odd, l=[np.random.default_rng(1), random.Random(2), torch.Generator().manual_seed(3), np.random.RandomState(4)])
    s = deepcopy(to_plain(o)) # as if it came from a file
    w = m.weight.detach().clone()
    with torch.no_grad(): p.zero_(); m.weight.zero_()
    odd.n = 4
    def draw(l): return l[0].random(), l[1].random(), torch.rand(1, generator=l[2]).item(), l[3].rand()
    first = draw(o['l'])
    back = from_plain(s, o)
    assert back['p'] is p and back['m'] is m and back['odd'] is odd and back['l'][0] is o['l'][0]
    assert p.tolist()==[1,1] and torch.equal(m.weight, w) and odd.n==3 and draw(o['l'])==first
    assert draw(from_plain(s['l']))==first # generators are made where there are none
    with pytest.raises(ValueError, match='there is no Linear yet'): from_plain(s['m'])

@pytest.mark.parametrize('o', [print, lambda: 0, open, object(), np.array([object()]), {print:3}, [print], iter([])], ids=lambda o: type(o).__name__)
def test_not_plain(o):
    with pytest.raises(TypeError, match='no plain form'): to_plain(o)

def test_views_are_small(tmp_path):
    "Of a view only its own elements are written"
    write_checkpoint(tmp_path/'a.pth', {'a':to_plain(torch.zeros(1_000_000)[3:5])})
    assert (tmp_path/'a.pth').stat().st_size<10_000
