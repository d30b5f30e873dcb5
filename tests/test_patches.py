"""What fastmix puts around fastai's methods survives: modules loaded again, export cells run again, and other libraries that patch
the same methods, before or after. Training goes on, batches are mixed, and the loss is the user's own."""
import importlib,sys
import pytest, torch
from digits import *
from fastai.callback.progress import ProgressCallback
from fastcore.basics import patch
from fastcore.test import test_is as is_same
from house import root
import fastmix.patches as patches
from fastmix.loss import MixedLoss
from fastmix.manifold import ManifoldMixUp
from fastmix.methods import MixUp, RecursiveMix

class Mixed(Callback):
    "Counts the batches whose targets were mixed, and may raise in the second"
    order,run_valid = 1,False
    def __init__(self, ex=None): self.ex,self.n = ex,0
    def after_pred(self):
        self.n += self.learn.yb[0].ndim==2 and isinstance(self.learn.loss_func, MixedLoss)
        if self.ex and self.n==2: raise self.ex('on purpose')

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return digit_dls(64, 16, path=tmp_path_factory.mktemp('patches'))

def learner(dls, cb):
    learn = Learner(dls, net(), metrics=accuracy, cbs=cb)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

again = """
import importlib,sys,warnings; warnings.simplefilter('ignore')
sys.path.insert(0, 'tests')
from house import directives, exports, load, modules, text
import torch
from fastai.basics import *
from fastai.callback.progress import ProgressCallback
import fastmix.all as fm
names = [m for m in sorted(modules()) if m!='train']
def trains(when, fm):
    x,y = torch.randn(8,3,8,8),torch.arange(8)%4
    dls = DataLoaders.from_dsets(list(zip(x,y)), list(zip(x,y)), bs=4, num_workers=0)
    for cbs in (fm.MixUp(n_classes=4), [fm.CutMix(n_classes=4),fm.ResizeMix(n_classes=4)], fm.ManifoldMixUp(layers='1', n_classes=4)):
        seen = []
        class Look(Callback):
            order,run_valid = 1,False
            def after_pred(self): seen.append(type(self.learn.loss_func).__name__)
        learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192,4)), CrossEntropyLossFlat(), cbs=cbs)
        learn.remove_cb(ProgressCallback); learn.logger = noop
        loss_func = learn.loss_func
        learn.fit(1, 1e-3, cbs=[Look,fm.EMA(),fm.MixRecorder])
        assert learn.loss_func is loss_func and 'MixedLoss' in seen, (when, cbs, seen)
"""
by_reload = again+"""
old = {k:getattr(fm, k) for k in fm.__all__}
from types import SimpleNamespace
for m in names:
    importlib.reload(importlib.import_module('fastmix.'+m))
    trains(f'{m}, loaded again', SimpleNamespace(**old))
trains('all of them', importlib.reload(fm))
"""
by_cell = again+"""
k = 0
for m in names:
    module,nb = importlib.import_module('fastmix.'+m),load(modules()[m])
    for i,c in enumerate(nb['cells']):
        if not exports(c): continue
        code = text(c['source'])
        exec(compile(code, f'{m}, cell {i}', 'exec'), vars(module))
        k += 1
        if m in ('patches','handler','manifold','loss'): trains(f'{m}, cell {i}', fm)
    trains(m, fm)
print(k)
"""
@pytest.mark.parametrize('code', [by_reload,by_cell], ids=['reload','cells'])
def test_a_second_run_of_our_code(fork, code):
    "Every module is loaded again, as `%autoreload` does; every export cell is run again, as readers of a notebook do"
    p = fork('-c', code, cwd=root)
    said = p.communicate()[0]
    assert p.returncode==0, said[-3000:]

def theirs(name, before, calls):
    "How another library replaces a method: by calling what was there, or by writing fastai's own anew"
    if calls: return lambda self, *args: before(self, *args)
    def one_batch(self, i, b):
        self.iter = i
        self._split(self._set_device(b))
        self._with_events(self._do_one_batch, 'batch', CancelBatchException)
    def all_batches(self):
        self.n_iter = len(self.dl)
        for o in enumerate(self.dl): self.one_batch(*o)
    def _do_fit(self):
        for self.epoch in range(self.n_epoch): self._with_events(self._do_epoch, 'epoch', CancelEpochException)
    return dict(one_batch=one_batch, all_batches=all_batches, _do_fit=_do_fit)[name]

@pytest.fixture
def clean(monkeypatch):
    "After the test `Learner` has the methods that it had"
    for k in ('one_batch','all_batches','_do_fit','export'): monkeypatch.setattr(Learner, k, getattr(Learner, k))
    yield
    importlib.reload(patches)

one_name = pytest.mark.parametrize('name', ['one_batch','all_batches','_do_fit'])
orders = pytest.mark.parametrize('order', ['before us','after us','after the callback was made','between two fits'])

@pytest.mark.every(5)
@pytest.mark.parametrize('cls', [MixUp,RecursiveMix,ManifoldMixUp])
@pytest.mark.parametrize('calls', [True,False], ids=['calls ours','writes it anew'])
@orders
@one_name
def test_a_second_patcher(clean, dls, name, order, calls, cls):
    def patch_it(): setattr(Learner, name, theirs(name, getattr(Learner, name), calls))
    if order=='before us':
        setattr(Learner, name, getattr(Learner, name)._wraps[1])      # fastai's own
        patch_it()
        importlib.reload(patches)
    if order=='after us': patch_it()
    learn = learner(dls, cls())
    if order=='after the callback was made': patch_it()
    if order=='between two fits':
        learn.fit(1)
        patch_it()
    loss_func,m = learn.loss_func,Mixed()
    learn.fit(1, cbs=m)
    assert m.n>=len(dls.train)-1                                     # the first batch of RecursiveMix is not mixed
    is_same(learn.loss_func, loss_func)
    with pytest.raises(RuntimeError, match='on purpose'): learn.fit(2, cbs=Mixed(RuntimeError))
    is_same(learn.loss_func, loss_func)
    assert not any(o._forward_hooks or o._forward_pre_hooks for o in learn.model.modules())
    learn.fit(1)
    assert learn.validate()[0]>0

def test_a_decorator_that_copies_attributes(clean, dls):
    "`functools.wraps` copies what marks our function: theirs is not taken for ours"
    from functools import wraps
    ours,called = Learner.one_batch,[]
    @wraps(ours)
    def one_batch(self, *args):
        called.append(1)
        return ours(self, *args)
    Learner.one_batch = one_batch
    assert not patches.is_ours(one_batch)
    learner(dls, MixUp()).fit(1)
    assert len(called)==len(dls.train)+len(dls.valid)

def test_fastcore_patch_after_us(clean, dls):
    "fastcore's `@patch` keeps the first original, which is fastai's and not ours"
    @patch
    def one_batch(self:Learner, i, b): self._orig_one_batch(i, b) if hasattr(Learner, '_orig_one_batch') else None
    Learner._orig_one_batch = patches.__dict__['Learner'].one_batch._wraps[1] if patches.is_ours(Learner.one_batch) else Learner._orig_one_batch
    learn,m = learner(dls, MixUp()),Mixed()
    loss_func = learn.loss_func
    learn.fit(1, cbs=m)
    assert m.n==len(dls.train)
    is_same(learn.loss_func, loss_func)

def test_one_batch_on_the_learner_itself(dls):
    "Nothing can be put around that: MixUp mixes, the loss comes back with the next event, and hidden layers are refused by name"
    for cb in (MixUp(), ManifoldMixUp(layers='input')):
        learn = learner(dls, cb)
        learn.one_batch = theirs('one_batch', None, False).__get__(learn)
        loss_func,m = learn.loss_func,Mixed()
        learn.fit(1, cbs=m)
        assert m.n==len(dls.train)
        is_same(learn.loss_func, loss_func)
    for ev in ('validate','fit'):
        with pytest.raises(RuntimeError, match='on purpose'): learn.fit(1, cbs=Mixed(RuntimeError))
        learn.validate() if ev=='validate' else learn.fit(1)
        is_same(learn.loss_func, loss_func)
    learn = learner(dls, ManifoldMixUp(layers='0'))
    learn.one_batch = theirs('one_batch', None, False).__get__(learn)
    w = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(RuntimeError, match='theirs.*one_batch runs in the place of'): learn.fit(1)
    assert all(torch.equal(a,b) for a,b in zip(w, learn.model.parameters()))

@pytest.mark.parametrize('ev', ['before_batch','after_pred','after_loss','before_backward'])
@pytest.mark.parametrize('ex', [KeyboardInterrupt,RuntimeError,CancelBatchException])
def test_half_precision_is_left(dls, ev, ex):
    "fastai's `MixedPrecision` leaves autocast after the loss only; a batch that ends before would give its weights to all that is computed later"
    class Half(MixedPrecision):
        "As on a GPU"
        def before_fit(self): self.autocast,self.scales,self.learn.scaler = torch.autocast('cpu', torch.bfloat16),[],torch.amp.GradScaler('cpu', enabled=False)
    class Raise(Callback):
        order = 100
        def __call__(self, event):
            if event==ev: raise ex()
    set_seed(1)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64,10)), CrossEntropyLossFlat(), cbs=[MixUp(),Half()])
    def loss(): return learn.validate()[0]
    with learn.no_bar(), learn.no_logging():
        try: learn.fit(1, cbs=Raise())
        except ex: pass
        assert not torch.is_autocast_enabled('cpu')
        learn.remove_cb(learn.half)
        before = loss()
        learn.fit(5, 1e-2)
        assert loss() < before-.1

@pytest.mark.parametrize('ev', ['before_validate','after_cancel_batch','after_cancel_train','after_cancel_epoch','after_cancel_fit','before_fit'])
def test_restored_in_every_event_that_may_come_next(dls, ev):
    "Though nothing has cleaned up"
    learn = learner(dls, MixUp())
    loss_func = learn.loss_func
    learn.loss_func = MixedLoss(loss_func)
    learn.training = True
    learn(ev)
    is_same(learn.loss_func, loss_func)

def test_a_loop_filled_by_a_callback(clean, dls):
    "By protocol: a method `run_epochs`; not while `lr_finder` is there; and not if the callback is switched off"
    class Loop(Callback):
        n = 0
        def run_epochs(self): self.n += 1
    learn = learner(dls, loop := Loop())
    learn.fit(3)
    assert loop.n==1
    learn.lr_find(num_it=5, show_plot=False, suggest_funcs=())
    assert loop.n==1
    loop.run = False
    learn.fit(1)
    assert loop.n==1

server = """
import sys
sys.modules['fastmix'] = None
import warnings; warnings.simplefilter('ignore')
from fastai.learner import load_learner
from fastai.vision.all import *
learn = load_learner(sys.argv[1])
print([cb.name for cb in learn.cbs], [k for k,v in vars(learn).items() if 'fastmix' in type(v).__module__])
print(round(float(learn.predict(torch.load(sys.argv[2], weights_only=False))[2].sum()), 4))
"""
def test_an_export_needs_nothing_of_ours(fork, tmp_path):
    "Callbacks, a learner that was stopped in a batch, a model and data from our command: a server has fastai and not us"
    import pickle
    from copy import deepcopy
    from fastmix.data import digit_dls
    from fastmix.ema import EMA
    from fastmix.models import small_resnet
    from fastmix.record import MixRecorder
    from fastmix.resume import Resume
    from fastmix.schedule import off_after
    dls = digit_dls(bs=256, path=tmp_path)
    cbs = [MixUp(schedule=off_after(.5)), ManifoldMixUp(), EMA(), MixRecorder(), Resume('run')]
    learn = Learner(dls, small_resnet(10), metrics=accuracy, cbs=cbs, path=tmp_path)
    learn.remove_cb(ProgressCallback); learn.logger = noop
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Mixed(KeyboardInterrupt))
    learn.export('model.pkl')
    assert [cb for cb in learn.cbs if cb in cbs]==cbs and learn.mix_up is cbs[0] and learn.ema is cbs[2]
    torch.save(dls.valid_ds[0][0], tmp_path/'x.pth')
    p = fork('-c', server, tmp_path/'model.pkl', tmp_path/'x.pth', cwd=root, both=False)
    out,err = p.communicate()
    assert p.returncode==0, err[-2000:]
    assert out.splitlines()==["['train_eval', 'recorder', 'cast_to_tensor'] []", '1.0']
    for twin in (deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert [type(cb) for cb in twin.cbs]==[type(cb) for cb in learn.cbs]
    learn.fit(1)
