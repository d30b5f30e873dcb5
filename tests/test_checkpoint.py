"What a run cannot lose without a word, what a folder from somebody else cannot do, and what a new cycle begins from"
import errno,gc,io,itertools,os,re,shutil,stat,subprocess,sys,tracemalloc,types,warnings
from collections import Counter,deque
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
import pytest
import torch.utils.data
from fastmix import callback as mix
from fastmix import resume as R
from fastmix.checkpoint import files
from fastmix.checkpoint.fingerprint import diff_runs
from fastmix.checkpoint.parts import GENERATORS,objects_in
from fastmix.checkpoint.serialize import from_plain,to_plain
from fastmix.recipe import *
from fastmix.resume import FolderInUse,OtherRun,Resume,newest_checkpoint,read_checkpoint,write_checkpoint
from longrun import *

posix = pytest.mark.skipif(os.name!='posix', reason='links and locks as Unix has them')

def fit(learn, n, *cbs, f='fit_one_cycle', lr=1e-2, **kw):
    "Fit quietly; what was printed"
    with redirect_stdout(io.StringIO()) as out, learn.no_bar(),learn.no_logging(): getattr(learn, f)(n, lr, cbs=list(cbs), **kw)
    return out.getvalue()

def resume(**kw): return Resume('run', ignore=Stop, **kw)
def saved(path): return sorted(f.name for f in (Path(path)/'models/run').glob('*.pth'))
def folder(path): return Path(path)/'models/run'

def told(w): return '\n'.join(str(o.message) for o in w if 'a continued run will differ' in str(o.message))

def continued(tmp_path, make, n=4, stop=Stop('after_batch', 2), *cbs):
    "End of the undisturbed run and of one that was stopped and continued in a new session; what the two were told"
    res = []
    for name in ('whole','run'):
        with warnings.catch_warnings(record=True) as w:
            learn = make(tmp_path/name)
            if name=='run':
                with pytest.raises(stop.ex): fit(learn, n, resume(), stop, *deepcopy(cbs))
                learn = make(tmp_path/name, seed=99)
            fit(learn, n, resume(), *deepcopy(cbs))
        res += [(fingerprint(learn),learn), told(w)]
    return res

# --- exact, or told

class Jitter:
    "A transform with a generator of its own, which is reached in a way that has no attribute"
    def __init__(self, seed): self.rng = np.random.default_rng(seed)
    def __call__(self, x): return x+.1*torch.tensor(self.rng.normal(size=x.shape)).float()
def jitter(x, rng): return x+.1*torch.tensor(rng.normal(size=x.shape)).float()
def closed_over(seed):
    rng = random.Random(seed)
    def f(x): return x+.1*rng.random()
    return f
class Slots:
    __slots__ = 'rng',
    def __init__(self, seed): self.rng = torch.Generator().manual_seed(seed)
    def __call__(self, x): return x+.1*torch.randn(x.shape, generator=self.rng)

hidden = dict(partial=lambda s: partial(jitter, rng=np.random.default_rng(s)), bound=lambda s: Jitter(s).__call__, closure=closed_over, slots=Slots,
              default=lambda s: lambda x, rng=np.random.default_rng(s): jitter(x, rng), deque=lambda s: Several(deque([Jitter(s)])), dict=lambda s: Several({'a':{'b':(Jitter(s),)}}))
class Several:
    def __init__(self, tfms): self.tfms = tfms
    def __call__(self, x):
        t = self.tfms
        return (t[0] if isinstance(t, deque) else t['a']['b'][0])(x)

class Moved(Digits):
    def __init__(self, lo, hi, train, f): super().__init__(lo, hi, train); self.f = f
    def __getitem__(self, i):
        x,y = super().__getitem__(i)
        return (self.f(x) if self.train else x),y

@pytest.mark.parametrize('where', hidden)
def test_hidden_generators(tmp_path, where):
    "In a partial, behind a bound method, in a closure, in a default, in slots, in a deque, deep in containers"
    def make(path, seed=1):
        set_seed(seed)
        dls = DataLoaders(DataLoader(Moved(0, 192, True, hidden[where](seed)), bs=64, shuffle=True), DataLoader(Digits(1000,1100,False), bs=64))
        return learner(path, seed=seed, dls=dls)
    (a,_),said,(b,_),_ = continued(tmp_path, make)
    assert a==b and not said

class Noisy(nn.Module):
    "A layer with a generator"
    def __init__(self, seed): super().__init__(); self.rng = np.random.default_rng(seed)
    def forward(self, x): return x+.1*torch.tensor(self.rng.normal(size=x.shape)).float() if self.training else x

def test_generator_in_the_model(tmp_path):
    def make(path, seed=1):
        learn = learner(path, seed=seed)
        learn.model.insert(2, Noisy(seed))
        return learn
    (a,_),said,(b,_),_ = continued(tmp_path, make)
    assert a==b and not said

class Lazy:
    def __len__(self): return 128
    def __getitem__(self, i): return torch.ones(1,8,8)*i/64+torch.rand(1),torch.tensor(i%10)
def test_torch_stream(tmp_path):
    "A dataset that draws from torch's global stream, in fastai's loader, which looks at an item when it makes its first batch"
    def make(path, seed=1):
        set_seed(seed)
        return learner(path, seed=seed, dls=DataLoaders.from_dsets(Lazy(), Lazy(), bs=32, num_workers=0, device='cpu'))
    for stop in (Stop('after_batch', 0), Stop('after_batch', 2)):
        (a,_),said,(b,_),_ = continued(tmp_path/stop.event/str(stop.epoch), make, 4, stop)
        assert a==b and not said

class Keeps(Callback):
    "Memory of many kinds"
    def __init__(self): self.last,self.count,self.by,self.box,self.seen = deque(maxlen=2),Counter(),{(0,1):0.},Box(),frozenset()
    def after_epoch(self):
        self.last.append(self.epoch); self.count[self.epoch%2] += 1; self.by[0,1] += 1; self.box.n += 1; self.box.inner['x'] = deque([self.epoch]); self.seen |= {self.epoch}
    def all(self): return self.last,self.last.maxlen,self.count,self.by,self.box.n,self.box.inner,self.seen
class Box:
    def __init__(self): self.n,self.inner = 0,{}

def test_memory_of_many_kinds(tmp_path):
    def make(path, seed=1): return learner(path, seed=seed, cbs=Keeps())
    (a,x),said,(b,y),_ = continued(tmp_path, make)
    assert a==b and not said and x.keeps.all()==y.keeps.all() and type(y.keeps.count) is Counter

class Unfreezes(Callback):
    def after_epoch(self):
        if self.epoch==1: self.learn.unfreeze()
        if self.epoch==0: self.learn.model[4].p = .5
def test_unfrozen_by_a_callback(tmp_path):
    "Which layers are trained, and what was set in a layer"
    def make(path, seed=1):
        learn = learner(path, seed=seed, cbs=Unfreezes())
        learn.freeze()
        return learn
    (a,x),said,(b,y),_ = continued(tmp_path, make)
    assert a==b and y.model[4].p==.5 and y.opt.frozen_idx==0 and all(p.requires_grad for p in y.model.parameters())

class Iterates(Callback):
    def __init__(self): self.numbers = itertools.count()
class Writes(Callback):
    def before_fit(self): self.log = (self.path/'log.txt').open('a')
    def after_fit(self): self.log.close()
class Copies(Callback):
    def after_epoch(self): self.average = deepcopy(self.learn.model)
class Remembers(Callback):
    def after_epoch(self): self.best_file = self.path/f'{self.epoch}.bin'
lost = dict(iterator=(Iterates, r'Iterates.numbers is an iterator \(count\)'), file=(Writes, 'Writes.log is an open file'), late=(Copies, 'Copies.average is a Sequential that was not there'),
            path=(Remembers, 'Remembers.best_file is a path'))
@pytest.mark.parametrize('what', lost)
def test_told(tmp_path, what):
    "One warning, with what to do"
    cb,says = lost[what]
    with pytest.warns(UserWarning, match=says) as w: fit(learner(tmp_path, cbs=cb()), 3, resume())
    w = [o for o in w if 'a continued run will differ' in str(o.message)]
    assert len(w)==1 and 'ignore=' in str(w[0].message)

def test_persistent_workers_are_told(tmp_path):
    def dl(**kw): return torch.utils.data.DataLoader(Digits(0,128,True), batch_size=64, **kw)
    with pytest.warns(UserWarning, match='loader 0 is a loader with persistent workers.*leave persistent_workers out'):
        fit(learner(tmp_path, dls=DataLoaders(dl(num_workers=1, persistent_workers=True), dl())), 1, resume())

def test_usual_runs_are_silent(tmp_path):
    "No false alarm from fastai's own"
    def make(path, seed=1): return learner(path, seed=seed, cbs=[GradientClip(1.), mix.MixUp()])
    cbs = SaveModelCallback(),EarlyStoppingCallback(patience=9),ReduceLROnPlateau(patience=5),CSVLogger()
    (a,_),said,(b,_),again = continued(tmp_path, make, 3, Stop('after_batch', 1), *cbs)
    assert a==b and said==again==''

class Items(list):
    "A list that does something when it is asked"
    def __iter__(self): raise AssertionError('opened')
    def __getitem__(self, i): raise AssertionError('opened')
def test_looking_opens_nothing():
    rng = np.random.default_rng(1)
    ds = types.SimpleNamespace(items=Items([1,2,rng]))
    assert [o for _,o in objects_in(ds) if isinstance(o, GENERATORS)]==[rng]

# --- what differs

def stopped(path, make=learner, n=4, **kw):
    with pytest.raises(KeyboardInterrupt): fit(make(path, **kw), n, resume(), Stop('after_batch', 2))

def classes(path, vocab=('a','b'), **kw):
    block = DataBlock((TransformBlock, CategoryBlock(vocab=list(vocab), sort=False)), get_x=lambda i: torch.full((1,8,8), i/64), get_y=lambda i: 'ab'[i%2], splitter=IndexSplitter(range(48,64)))
    return learner(path, dls=block.dataloaders(list(range(64)), bs=16, num_workers=0), **kw)
def metrics(path, **kw):
    learn = learner(path, **kw)
    learn.metrics = [error_rate,accuracy]
    return learn

@pytest.mark.parametrize('make,other,says', [(classes, partial(classes, vocab='ba'), r"classes: \['b', 'a'\] here"), (learner, metrics, 'metrics: .*error_rate'),
    (learner, partial(learner, wd_bn_bias=True), 'optimizer, wd_bn_bias: True here, False in'), (learner, partial(learner, train_bn=False), 'train_bn')], ids=['classes','metrics','wd_bn_bias','train_bn'])
def test_differs(tmp_path, make, other, says):
    stopped(tmp_path, make)
    with pytest.raises(OtherRun, match=says): fit(other(tmp_path), 4, resume())

@pytest.mark.parametrize('long', [False,True])
def test_another_rate_is_one_line(tmp_path, long):
    kw = dict(f='fit_long', schedule=None, advice=False) if long else {}
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 4, resume(), Stop('after_batch', 2), **kw)
    with pytest.raises(OtherRun) as e: fit(learner(tmp_path), 4, resume(), lr=3e-3, **kw)
    assert len([l for l in str(e.value).splitlines() if ' here, ' in l])==1 and "schedule, lr, 0%" in str(e.value)

def test_versions_are_told(tmp_path, monkeypatch):
    stopped(tmp_path)
    f = folder(tmp_path)/saved(tmp_path)[-1]
    s = read_checkpoint(f)
    s['environment'].update(fastai='2.0.0', numpy='1.0')
    write_checkpoint(f, s)
    assert re.search(r'goes on with fastai \S+ \(was 2.0.0\), numpy \S+ \(was 1.0\)', fit(learner(tmp_path), 4, resume()))

@pytest.mark.parametrize('f', ['fit_one_cycle','fit_long'])
@pytest.mark.parametrize('n,says', [(40,'bs=64: dls.train has 40 items, fewer than a batch'), (0,'dls.train is empty')])
def test_no_batch(tmp_path, f, n, says):
    "Refused before anything is trained or written"
    dls = DataLoaders.from_dsets(Digits(0,n,True), Digits(1000,1100,False), bs=64, num_workers=0)
    learn = learner(tmp_path, dls=dls)
    with pytest.raises(ValueError, match=says): fit(learn, 4, *([resume()] if f=='fit_one_cycle' else []), f=f, **({'save':'run'} if f=='fit_long' else {}))
    assert not folder(tmp_path).exists()

# --- a new cycle from the saved weights

def long(path, n=3, lr=1e-2, seed=1, cbs=(), make=learner, **kw):
    learn = make(path, seed=seed)
    return learn,fit(learn, n, CSVLogger(), *cbs, f='fit_long', lr=lr, save='run', advice=False, schedule=None, **kw)

def test_new_cycle(tmp_path):
    "Begins with the saved weights and nothing else, keeps what was there, continues when it is called again, and says that it is finished"
    a,_ = long(tmp_path)
    old = {f.name:f.read_bytes() for f in folder(tmp_path).glob('*.pth')}
    def again(seed, *cbs): return long(tmp_path, 4, 1e-3, seed, cbs, resume='weights')
    with pytest.raises(KeyboardInterrupt): again(5, Stop('after_batch', 2))
    assert {f.name:f.read_bytes() for f in (folder(tmp_path)/'old_1').glob('*.pth')}==old
    assert len((folder(tmp_path)/'old_1/history.csv').read_text().splitlines())==4
    s = read_checkpoint(folder(tmp_path)/saved(tmp_path)[-1])
    assert (s['done'],s['cycle'])==(2,1)

def test_new_cycle_is_exact(tmp_path):
    "Stopped and continued it ends as when nobody had stopped it, on the same learner too; the weights are those that were saved"
    ends = []
    for name,stop,same in (('a',None,False), ('b',Stop('after_batch', 2),False), ('c',Stop('after_batch', 0),True)):
        d = tmp_path/name
        learn = learner(d)
        fit(learn, 3, CSVLogger(), resume())
        begin = digest(learn.model.state_dict())
        def again(learn, *cbs): return fit(learn, 4, CSVLogger(), Resume('run', resume='weights', ignore=(Stop,Look)), Look(), *cbs, lr=1e-3)
        class Look(Callback):
            order = -900
            def before_epoch(self):
                if self.epoch==0 and not hasattr(Look, 'seen'): Look.seen = digest(self.model.state_dict()); assert not any(isinstance(v, Tensor) for o in self.opt.state_dict()['state'] for v in o.values())
        if not same: learn = learner(d, seed=7)
        set_seed(8)
        if stop:
            with pytest.raises(KeyboardInterrupt): again(learn, stop)
            if not same: learn = learner(d, seed=9)
        assert ('continues' if stop else 'starts a new cycle of 4 epochs from the weights in epoch_0003.pth') in again(learn) or stop and stop.epoch==0
        assert Look.seen==begin
        if not same: ends.append(fingerprint(learn, 'history.csv'))
        assert 'is finished, 4 of 4' in again(learner(d, seed=3))
    assert ends[0]['csv'][0]==ends[1]['csv'][0] and len(ends[1]['csv'])==5

def test_new_cycle_after_nan(tmp_path):
    "From the newest checkpoint whose weights are numbers; if there is none, it says so"
    class Diverges(Callback):
        def after_epoch(self):
            if self.epoch==1: self.learn.model[0].weight.data[:] = float('nan')
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path, cbs=Diverges()), 5, resume(keep=2), Stop('before_epoch', 2))
    assert saved(tmp_path)==['epoch_0001.pth','epoch_0002.pth']
    out = fit(learner(tmp_path), 2, resume(resume='weights'), lr=1e-3)
    assert 'from the weights in epoch_0001.pth (after 1 epochs)' in out
    d = tmp_path/'b'
    with pytest.raises(KeyboardInterrupt): fit(learner(d, cbs=Diverges()), 5, resume(keep=1), Stop('before_epoch', 2))
    before = {f:f.read_bytes() for f in d.rglob('*.pth')}
    with pytest.raises(ValueError, match='in no checkpoint in .* are all weights numbers; start afresh with resume=False'): fit(learner(d), 2, resume(resume='weights'))
    assert {f:f.read_bytes() for f in d.rglob('*.pth')}==before

def test_new_cycle_killed_in_between(tmp_path, monkeypatch):
    "The old checkpoints are in their folder and the first of the new cycle is not written: the same call finds the weights there"
    learn = learner(tmp_path)
    fit(learn, 2, resume())
    weights = digest(learn.model.state_dict())
    def no(*args): raise KeyboardInterrupt
    monkeypatch.setattr(R, 'write_checkpoint', no)
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 3, resume(resume='weights'))
    monkeypatch.undo()
    assert saved(tmp_path)==[] and (folder(tmp_path)/'old_1/epoch_0002.pth').exists()
    class Look(Callback):
        def before_train(self): Look.seen = digest(self.model.state_dict()); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path, seed=4), 3, Resume('run', resume='weights', ignore=Look), Look())
    assert Look.seen==weights

def test_new_cycle_refused(tmp_path):
    with pytest.raises(ValueError, match="resume='weights': nothing is saved in"): fit(learner(tmp_path), 2, resume(resume='weights'))
    fit(learner(tmp_path), 2, resume())
    with pytest.raises(ValueError, match='its weights are not those of this model: 0.weight') as e: fit(learner(tmp_path, width=12), 2, resume(resume='weights'))
    assert saved(tmp_path)==['epoch_0001.pth','epoch_0002.pth']
    with pytest.raises(OtherRun, match="It is finished, after 2 epochs.*(\n.*)*resume='weights'"): fit(learner(tmp_path), 3, resume())

def test_new_cycle_from_the_format_before(tmp_path):
    "A file of fastmix 0.1 has weights as well"
    learn = learner(tmp_path)
    fit(learn, 2, resume())
    f = folder(tmp_path)/'epoch_0002.pth'
    s = read_checkpoint(f)
    del s['cycle'],s['columns']
    write_checkpoint(f, {**s, 'format':1})
    assert 'starts a new cycle of 3 epochs' in fit(learner(tmp_path, seed=3), 3, resume(resume='weights'))

# --- a folder from somebody else

@posix
@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_no_link_is_followed(tmp_path, link):
    "A lock, a temporary file, a checkpoint or the folder itself that is a link: what it leads to is neither written, nor emptied, nor deleted"
    d = folder(tmp_path)
    d.mkdir(parents=True)
    letters = tmp_path/'letters.txt'
    letters.write_text('years of work')
    link(letters, d/'lock')
    with pytest.raises(OSError, match='lock'): fit(learner(tmp_path), 1, resume())
    (d/'lock').unlink()
    for n in ('.epoch_0000.pth.tmp','.epoch_0001.pth.tmp','epoch_0000.pth','epoch_0001.pth'): link(letters, d/n)
    if link is os.symlink: (tmp_path/'elsewhere').mkdir(); os.symlink(tmp_path/'elsewhere', d/'old_1')
    if link is os.symlink:
        fit(learner(tmp_path), 2, resume(resume=False))
        fit(learner(tmp_path), 2, resume(resume=False))
        assert list((tmp_path/'elsewhere').iterdir())==[] and len(list((d/'old_2').glob('*.pth')))==2
    else:
        with pytest.warns(UserWarning, match='damaged'), pytest.raises(ValueError, match='whole'): fit(learner(tmp_path), 2, resume())
    assert letters.read_text()=='years of work'

@posix
def test_folder_is_a_link(tmp_path):
    (tmp_path/'models').mkdir(); (tmp_path/'other').mkdir()
    os.symlink(tmp_path/'other', tmp_path/'models/run')
    with pytest.raises(ValueError, match='is a link: give the run a folder of its own'): fit(learner(tmp_path), 1, resume())
    assert list((tmp_path/'other').iterdir())==[]

@posix
def test_pipes_and_folders(tmp_path):
    "A lock that is a pipe nobody reads, checkpoints that are folders: an error at once, or not taken for a checkpoint"
    d = folder(tmp_path)
    d.mkdir(parents=True)
    os.mkfifo(d/'lock')
    with pytest.raises(OSError): fit(learner(tmp_path), 1, resume())
    (d/'lock').unlink(); (d/'epoch_0009.pth').mkdir()
    fit(learner(tmp_path), 1, resume())
    assert newest_checkpoint(d)['done']==1

def crafted(path, change):
    "A checkpoint with a right checksum that somebody has changed"
    stopped(path)
    f = folder(path)/saved(path)[-1]
    s = read_checkpoint(f)
    change(s)
    write_checkpoint(f, s)

def set_in(*keys, value):
    def f(s):
        *front,last = keys
        for k in front: s = s[k]
        s[last] = value
    return f
own = 'own',0
wrong = dict(empty=lambda s: s.clear(), no_own=lambda s: s.pop('own'), own=set_in('own', value=[]), done=set_in('done', value='2'), shared=set_in('shared', value={}), run=set_in('run', value={}),
    environment=set_in('environment', value={}), model=lambda s: s['shared']['model'].popitem(), shape=set_in('shared','model','0.weight', value=torch.zeros(3)), opt=set_in('shared','opt', value={'hypers':[], 'state':[]}),
    rng=set_in(*own,'random', value={'python':1}), method=set_in(*own,'callbacks','Recorder', value={'after_batch':1}), dunder=set_in(*own,'callbacks','Recorder', value={'__class__':1}),
    function=set_in(*own,'callbacks','Noise', value={'rng':{'fastmix':'os.system','data':'touch evil'}}), bit_generator=set_in(*own,'callbacks','Noise', value={'rng':{'fastmix':'state','of':'Generator','data':{'bit_generator':'seed'}}}),
    rows=set_in('rows', value=[3]), offsets=set_in('offsets', value={'history.csv':'x'}), loaders=set_in(*own,'loaders', value=[{}]), grads=set_in(*own,'grads', value=['a']), progress=set_in(*own,'progress', value=3),
    generators=set_in(*own,'generators', value={'loader 0.rng':3}))
@pytest.mark.every(2)
@pytest.mark.parametrize('what', wrong)
def test_right_checksum_wrong_content(tmp_path, what, monkeypatch):
    "Refused in one line, and no code of the file runs"
    monkeypatch.chdir(tmp_path)
    crafted(tmp_path, wrong[what])
    with pytest.raises(ValueError) as e: fit(learner(tmp_path), 4, resume())
    if not isinstance(e.value, OtherRun): assert '\n' not in str(e.value) and str(folder(tmp_path)) in str(e.value)
    assert not (tmp_path/'evil').exists() and not files.locked_folders
    fit(learner(tmp_path), 1, Resume('other'))

def test_only_known_fields(tmp_path):
    "What the file adds to the progress of a learner is not set; nor are paths, and texts that a constructor was given"
    def change(s):
        s['own'][0]['progress'].update(model=3, path='/', opt_func=1)
        s['own'][0]['callbacks']['SaveModelCallback'].update(fname='run/evil', monitor='x', more='a/b')
    def make(path, seed=1): return learner(path, seed=seed, cbs=SaveModelCallback())
    stopped(tmp_path, make)
    f = folder(tmp_path)/saved(tmp_path)[-1]
    s = read_checkpoint(f)
    change(s)
    write_checkpoint(f, s)
    learn = make(tmp_path)
    fit(learn, 4, resume())
    cb = learn.save_model
    assert (cb.fname,cb.monitor,hasattr(vars(cb), 'more'),'more' in vars(cb))==('model','valid_loss',False,False) and isinstance(learn.model, nn.Module) and learn.opt_func is not 1 and learn.path==tmp_path

@pytest.mark.parametrize('name', ['../a','a/../../b','/a','a\0b','a\nb','\x7f','','.','..',' '], ids=repr)
def test_names(name):
    with pytest.raises(ValueError, match='must be a name') as e: Resume(name)
    assert '\n' not in str(e.value)

@posix
def test_names_that_are_no_text(tmp_path):
    "A path and a run whose bytes are no UTF-8, and items with such names"
    d,name = tmp_path/os.fsdecode(b'caf\xe9'),os.fsdecode(b'r\xff')
    d.mkdir()
    def make(path, seed=1):
        items = [Path(os.fsdecode(b'%d\xe9.png' % i)) for i in range(64)]
        dls = DataLoaders(*[DataLoader(Datasets(items, [lambda o: torch.zeros(1,8,8), lambda o: len(o.name)%10]), bs=32) for _ in 'ab'])
        return learner(path, seed=seed, dls=dls)
    cb = Resume(name, ignore=Stop)
    with pytest.raises(KeyboardInterrupt): fit(make(d), 3, CSVLogger(os.fsdecode(b'h\xe9.csv')), cb, Stop('after_epoch', 2))
    assert 'continues after 2 of 3' in fit(make(d), 3, CSVLogger(os.fsdecode(b'h\xe9.csv')), cb)
    with pytest.raises(OtherRun): fit(make(d), 4, CSVLogger(os.fsdecode(b'h\xe9.csv')), cb)

# --- locks

def other_process(d):
    "Does another process get the lock of the folder? `None` if it fails"
    code = f"from fastmix.checkpoint.files import *\ntry: lock_folder({str(d)!r}); print('yes')\nexcept FolderInUse: print('no')"
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':str(Path(__file__).parent.parent)})
    return {'yes':True, 'no':False}.get(p.stdout.strip())

@posix
def test_lock_survives_a_copy(tmp_path):
    "The process opens and closes the lock elsewhere, as whoever copies the folder does"
    key = files.lock_folder(tmp_path)
    shutil.copytree(tmp_path, tmp_path.with_name('copy'))
    (tmp_path/'lock').read_text()
    assert other_process(tmp_path) is False and other_process(tmp_path.with_name('copy')) is True
    files.unlock_folder(key)
    assert other_process(tmp_path) is True

class Windows:
    "`msvcrt` as far as a lock needs it: a region of a file, by its place"
    LK_NBLCK,held = 1,set()
    def locking(self, fd, how, n):
        k = os.fstat(fd).st_ino,os.lseek(fd, 0, os.SEEK_CUR)
        if k in self.held: raise OSError(errno.EACCES, 'Permission denied')
        self.held.add(k)

def test_windows(tmp_path, monkeypatch):
    "Without `fcntl` a far byte is locked, and who holds it can be read; without either, a warning says that there is no lock"
    monkeypatch.setattr(files, 'fcntl', None)
    monkeypatch.setattr(files, 'msvcrt', Windows())
    key = files.lock_folder(tmp_path)
    monkeypatch.setattr(files, 'locked_folders', {}) # another process
    with pytest.raises(FolderInUse, match=f'Process {os.getpid()} on'): files.lock_folder(tmp_path)
    monkeypatch.setattr(files, 'msvcrt', None)
    with pytest.warns(UserWarning, match='no locks'): files.unlock_folder(files.lock_folder(tmp_path))
    monkeypatch.undo()
    files.unlock_folder(key)

def test_no_folder_sync(tmp_path, monkeypatch):
    "A file system that cannot sync folders still saves; a disk that fails is an error"
    fsync = os.fsync
    def f(fd, code=None):
        if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(code, 'no')
        fsync(fd)
    for code in (errno.EINVAL,errno.ENOTSUP,errno.EACCES):
        monkeypatch.setattr(os, 'fsync', partial(f, code=code))
        write_checkpoint(tmp_path/'a.pth', {'a':1})
    monkeypatch.setattr(os, 'fsync', partial(f, code=errno.EIO))
    with pytest.raises(OSError): write_checkpoint(tmp_path/'a.pth', {'a':1})

# --- memory

peak = """
import sys,torch
from fastmix.checkpoint.files import *
f,what = sys.argv[1:]
state = {'w':[torch.ones(1<<18) for _ in range(100)]} if what=='write' else None
if what=='write': write_checkpoint(f+'.small', {'a':torch.ones(9)})
else: read_checkpoint(f+'.small')
def mb(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])/1024
open('/proc/self/clear_refs', 'w').write('5') # the peak so far is forgotten
before = mb()
if what=='write': write_checkpoint(f, state)
else: state = read_checkpoint(f)
print(mb()-before)
"""
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
def test_peak_memory(tmp_path):
    "100 MiB are written with a few MiB more, and read with 100 MiB and a few more: the file is never in memory a second time"
    def run(what):
        p = subprocess.run([sys.executable, '-W', 'ignore', '-c', peak, str(tmp_path/'a.pth'), what], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':str(Path(__file__).parent.parent)})
        return float(p.stdout)
    assert run('write')<20 and 90<run('read')<125

# --- folders that change, and Ctrl-C

def test_folder_changes_in_a_fit(tmp_path, monkeypatch):
    "`learn.path` may be relative, and a callback may go elsewhere"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'elsewhere').mkdir()
    class Goes(Callback):
        order = 99
        def after_epoch(self): os.chdir(tmp_path/'elsewhere')
    def make(seed=1):
        learn = learner('.', seed=seed)
        return learn
    with pytest.raises(KeyboardInterrupt): fit(make(), 3, Resume('run', ignore=(Goes,Stop)), Goes(), Stop('after_batch', 2), CSVLogger())
    assert saved(tmp_path)==['epoch_0001.pth','epoch_0002.pth'] and list((tmp_path/'elsewhere').iterdir())==[] and not files.locked_folders
    os.chdir(tmp_path)
    assert 'continues after 2' in fit(make(), 3, Resume('run', ignore=(Goes,Stop)), Goes(), CSVLogger())
    assert len((tmp_path/'history.csv').read_text().splitlines())==4 and list((tmp_path/'elsewhere').iterdir())==[]

def test_killed_in_the_first_checkpoint(tmp_path, monkeypatch):
    "`history.csv` is that of an undisturbed run, appended or not"
    for append in (False,True):
        d = tmp_path/str(append)
        d.mkdir()
        (d/'history.csv').write_text('of another fit\n')
        pid = os.fork()
        if not pid:
            torch.save = lambda *args: os._exit(9) # as kill -9 does
            try: fit(learner(d), 2, CSVLogger(append=append), resume())
            finally: os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==9
        fit(learner(d), 2, CSVLogger(append=append), resume())
        assert [l.split(',')[0] for l in (d/'history.csv').read_text().splitlines()]==['of another fit']*append+['epoch','0','1']

def lines_of(f, stop=None):
    "Run `f`; how many lines of fastmix and of fastai's learner it came by. At number `stop` Ctrl-C is pressed"
    n,ours = 0,(str(Path(R.__file__).parent),str(Path(sys.modules[Learner.__module__].__file__)))
    def local(frame, event, arg):
        nonlocal n
        if event=='line':
            n += 1
            if n==stop:
                sys.settrace(None)
                raise KeyboardInterrupt
        return local
    sys.settrace(lambda frame, event, arg: local if frame.f_code.co_filename.startswith(ours) else None)
    try: f()
    finally: sys.settrace(None)
    return n

@pytest.mark.parametrize('ex', [OSError(errno.ENOSPC, 'No space left on device'),KeyboardInterrupt()], ids=['full','interrupted'])
@pytest.mark.parametrize('at', [1,2,7])
def test_what_ends_a_write_is_said(tmp_path, monkeypatch, ex, at):
    "A full disk is an `OSError` and Ctrl-C a `KeyboardInterrupt`, wherever they come; the file there is the old one, and nothing else is left"
    write,n = files._HashingFile.write,0
    def broken(self, b):
        nonlocal n
        n += 1
        if n==at: raise ex
        return write(self, b)
    write_checkpoint(tmp_path/'a.pth', {'a':1})
    monkeypatch.setattr(files._HashingFile, 'write', broken)
    with pytest.raises(type(ex)): write_checkpoint(tmp_path/'a.pth', {'a':torch.rand(1000), 'b':[torch.rand(2) for _ in range(9)]})
    assert os.listdir(tmp_path)==['a.pth'] and read_checkpoint(tmp_path/'a.pth')=={'a':1}

@pytest.mark.parametrize('every', [1/30, pytest.param(1/200, marks=pytest.mark.fuzz)], ids=['some','most'])
def test_interrupted_at_any_line(tmp_path, every):
    "The learner is as it was, or the next fit finds it so: its callbacks, their names and schedules, its logger, its loss; and the folder is free"
    d = Digits(0,32,False)
    def make(path):
        learn = learner(path, dls=DataLoaders(DataLoader(d, bs=32), DataLoader(d, bs=32)), cbs=mix.MixUp())
        learn.remove_cb(ProgressCallback)
        learn.logger = noop
        return learn
    def call(learn): learn.fit_long(1, 1e-2, save='run', cbs=CSVLogger(), ema=True, clip=1., advice=False)
    n = lines_of(lambda: call(make(tmp_path/'count')))
    assert n>1000
    bad = []
    for stop in range(1, n, max(1, int(n*every))):
        learn = make(tmp_path/str(stop))
        cbs,names,f = list(learn.cbs),set(vars(learn)),learn.loss_func
        with redirect_stdout(io.StringIO()):
            try: lines_of(lambda: call(learn), stop)
            except KeyboardInterrupt: pass
            ok = not files.locked_folders and learn.logger is noop and learn.mix_up.schedule is None and [id(o) for o in learn.cbs]==[id(o) for o in cbs] and all(getattr(learn, cb.name) is cb and cb.learn is learn for cb in cbs)
            call(learn)
        if not ok or learn.loss_func is not f or len(learn.recorder.values)!=1: bad.append(stop)
        shutil.rmtree(tmp_path/str(stop))
    assert not bad
