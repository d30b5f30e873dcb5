"`fit_long`: with everything off it is `fit_one_cycle`; what it adds is right in every step; and nothing is left behind."
from digits import *
import contextlib, copy, pickle, warnings
import pytest, torch
from torch.amp import GradScaler, autocast
from fastai.callback.core import _events
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
import fastmix.ema as recipe_ema
import fastmix.recipe as recipe
from fastmix.callback import *
from fastmix.ema import *
from fastmix.recipe import *
from fastmix.resume import Resume
from fastmix.record import *
from fastmix.schedule import *

off = dict(schedule=None, wd=None, ema=None, clip=None, save=None)

@pytest.fixture
def folder(tmp_path): return tmp_path

@pytest.fixture(autouse=True)
def quiet(): recipe._advised.add('test')
@pytest.fixture
def talking(): recipe._advised.clear()

def halves(m): return [params(m[:3]), params(m[3:])]

def learner(path, cbs=None, seed=3, n=160, bs=20, p=.2, opt_func=Adam, **kw):
    "A learner that is the same every time: 6 batches of 120 images, 40 more for validation"
    set_seed(seed)
    learn = Learner(digit_dls(n, bs, path=path), net(p=p), metrics=accuracy, cbs=cbs, splitter=halves, opt_func=opt_func, **kw)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def weights(learn): return {k:v.detach().clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def run(learn): return torch.stack(learn.recorder.losses), learn.recorder.lrs, [r[:3] for r in learn.recorder.values], weights(learn)

# --- everything off

@pytest.mark.every(2)
@pytest.mark.parametrize('cbs', [None, MixUp, [MixUp(schedule=off_after(.5)), CutMix()]], ids=['none','mixup','two'])
@pytest.mark.parametrize('how', ['plain','slice','frozen','accumulate','bf16','sgd','lr_find','moms','start_epoch'])
def test_off_is_one_cycle(folder, cbs, how):
    "Loss, learning rate, results and weights are those of `fit_one_cycle`, bit by bit"
    kw = dict(slice=dict(lr_max=slice(1e-4,1e-2)), moms=dict(moms=(.9,.8,.9), wd=.1, div=10., pct_start=.4), start_epoch=dict(start_epoch=1)).get(how, dict(lr_max=1e-2))
    def one(fit, **extra):
        learn = learner(folder, copy.deepcopy(cbs), opt_func=partial(SGD, mom=.9) if how=='sgd' else Adam)
        if how=='frozen': learn.freeze()
        if how=='accumulate': learn.add_cb(GradientAccumulation(40))
        if how=='bf16': learn.to_bf16()
        if how=='lr_find': learn.lr_find(num_it=6, show_plot=False, suggest_funcs=())
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*CUDA is not available')
            getattr(learn, fit)(3, **{**extra, **kw})
        return run(learn)
    a,b = one('fit_one_cycle'),one('fit_long', **off)
    assert torch.equal(a[0], b[0]) and a[1:3]==b[1:3] and same(a[3], b[3])

def test_defaults_are_written_once():
    "The defaults of `fit_long` are those of `LONG`, and as long as these are fastai's, its cycle is fastai's"
    import inspect
    ps = inspect.signature(Learner.fit_long).parameters
    for k in ('n_epoch','div','div_final','pct_start','wd','schedule','ema','clip'): assert ps[k].default is getattr(LONG, k)
    names = list(inspect.signature(Learner.fit_one_cycle).parameters)
    assert [k for k in ps if k in names]==names and all(ps[k].default is inspect.signature(Learner.fit_one_cycle).parameters[k].default for k in 'lr_max moms cbs reset_opt'.split())

# --- curves

curves = [off_after(.85), hesitation(), warm_up(2)*MixSchedule(strength=SchedLin(1,.2)), SchedCos(1,0)]

class Steps(Callback):
    "Learning rates, momentum and mixing as they are in each step, on the list `Steps.to`, which belongs to no run"
    order,run_valid = 30,False
    def before_step(self):
        cb = next((cb for cb in self.learn.cbs if isinstance(cb, MixHandler) and cb.plan is not None), None)
        Steps.to.append((self.epoch, self.iter, [h['lr'] for h in self.opt.hypers], self.opt.hypers[-1]['mom'], cb and (cb.batch.prob, cb.batch.strength)))

@pytest.mark.every(3)
@pytest.mark.parametrize('s', curves, ids=['off','hesitation','product','cos'])
@pytest.mark.parametrize('stop', [None,2,5])
def test_curves(folder, s, stop):
    "Every step has the learning rates, the momentum and the mixing that are written down for it, resumed or not"
    steps = Steps.to = []
    def fit():
        learn = learner(folder, MixUp(prob=.9))
        learn.fit_long(8, slice(1e-3,1e-2), save='r', schedule=s, cbs=[Steps, Stop(stop)])
        return learn
    if stop is not None:
        with pytest.raises(KeyboardInterrupt): fit()
        del steps[6*stop:]                                     # what comes after the last checkpoint is done again
        Stop.armed = False
    learn = fit()
    assert [o[:2] for o in steps]==[(e,i) for e in range(8) for i in range(6)]
    lr,mom = combined_cos(.25, np.array([1e-3,1e-2])/25, np.array([1e-3,1e-2]), np.array([1e-3,1e-2])/1e5),combined_cos(.25, .95, .85, .95)
    hps = learn.recorder.hps
    for k,(e,i,lrs,m,now) in enumerate(steps):
        pct = (e+i/6)/8
        np.testing.assert_allclose(lrs, lr(pct), rtol=1e-5)
        np.testing.assert_allclose(m, mom(pct), rtol=1e-6)
        f = s(pct, 8) if isinstance(s, MixSchedule) else (s(pct),1.)
        np.testing.assert_allclose(now, (.9*f[0],f[1]), atol=1e-7)
        assert (hps['lr'][k],hps['mom'][k],hps['mix_prob'][k])==(lrs[-1],m,now[0])
    assert all(len(v)==48 for v in hps.values())

class Stop(Callback):
    "Interrupts epoch `epoch` in its fourth batch, once"
    run_valid,armed = False,True
    def __init__(self, epoch): self.when = epoch
    def before_batch(self):
        if Stop.armed and self.epoch==self.when and self.iter==3: raise KeyboardInterrupt
@pytest.fixture(autouse=True)
def rearm(): Stop.armed = True

# --- whose schedule

def test_own_schedule_wins(folder):
    "The fit's schedule is for callbacks that have none of their own, and only for the time of the fit"
    a,b = MixUp(schedule=warm_up(1.)),CutMix()
    learn = learner(folder, [a,b])
    own,seen = a.schedule,[]
    class Look(Callback):
        def before_train(self): seen.append((a.schedule,b.schedule))
    learn.fit_long(2, schedule=off_after(.5), cbs=Look)
    assert all(o[0] is own and repr(o[1])=='off_after(end=0.5)' for o in seen) and len(seen)==2
    assert a.schedule is own and b.schedule is None

def test_default_fades(folder):
    learn = learner(folder, CutMixUp())
    learn.fit_long(20, columns=False)
    p = np.array(learn.recorder.hps['mix_prob']).reshape(20,6)
    assert (p[:17]==1).all() and (p[17:]==0).all()

# --- weight decay

class SeesWd(Callback):
    order = 2
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append({h['wd'] for h in self.opt.hypers})

@pytest.mark.parametrize('how,want', [
    ('nothing said', 'rule'), ('slice', 'rule'), ('in the call', .07), ('none', .01), ('learner', .02), ('opt_func', .04), ('sgd', 'rule'), ('torch', 0.), ('accumulate', 'rule')])
def test_weight_decay(folder, how, want):
    "The rule, unless somebody has said something else or the optimizer decays in another way"
    from fastai.optimizer import OptimWrapper
    n,see = 400,SeesWd()
    opt = {'opt_func':partial(Adam, wd=.04), 'sgd':SGD, 'torch':partial(OptimWrapper, opt=torch.optim.SGD)}.get(how, Adam)
    learn = learner(folder, n=n, bs=10, opt_func=opt, wd=.02 if how=='learner' else None)
    if how=='accumulate': learn.add_cb(GradientAccumulation(30))
    kw = {'in the call':dict(wd=.07), 'none':dict(wd=None)}.get(how, {})
    learn.fit_long(2, slice(1e-3,3.) if how=='slice' else 3., schedule=None, columns=False, cbs=see, **kw)
    steps = 2*len(learn.dls.train)/(3 if how=='accumulate' else 1)
    lrs = np.array(learn.recorder.hps['lr'])
    if want!='rule': assert set.union(*see.seen)=={want}
    else:
        wd, = set.union(*see.seen)
        assert wd==run_wd(steps, 3.) < LONG.wd_max                             # a very high learning rate, so that the limit is not met
        if how=='nothing said': assert abs(wd*lrs.sum() - LONG.shrink) < .05*LONG.shrink   # the real sum of the learning rates

@pytest.mark.parametrize('args,says', [((0,1e-3),'n_step=0'), ((-3,1e-3),'n_step=-3'), ((10,0.),'lr_max=0.0'), ((10,-1.),'lr_max=-1.0')])
def test_weight_decay_of_nothing(args, says):
    with pytest.raises(ValueError, match=says): run_wd(*args)

@pytest.mark.parametrize('lr', [np.float32(3), np.array(3.), np.array([.1,3.]), torch.tensor(3.), [3.], slice(.1,3.)], ids=lambda o: type(o).__name__)
def test_weight_decay_for_any_rate(folder, lr):
    "Whatever `fit_one_cycle` takes as a learning rate"
    assert recipe._wd(learner(folder, n=400, bs=10), 'auto', (), 2, lr, 25., 1e5, .25)==pytest.approx(run_wd(60, 3.))

# --- which mixing

def test_recommended(folder, capsys):
    "For this fit only, and it says so"
    learn,steps = learner(folder),[]
    class Look(Callback):
        order = 2
        def after_pred(self):
            if self.training: steps.append([type(cb).__name__ for cb in self.learn.cbs if isinstance(cb, MixHandler) and cb.plan is not None])
    learn.fit_long(5, cbs=Look)
    assert {tuple(o) for o in steps}=={('CutMixUp',)}
    out = capsys.readouterr().out
    assert out.count('fit_long:')==1 and 'so CutMixUp is added for this fit' in out and 'schedule=None' in out
    assert not [cb for cb in learn.cbs if isinstance(cb, MixHandler)] and 'mix_up' not in vars(learn)
    learn.fit_long(1, schedule=None)
    assert capsys.readouterr().out=='' and list(learn.recorder.hps)==['lr','mom']

@pytest.mark.parametrize('where', ['learner','fit','class'])
def test_nothing_is_added_to_ones_own(folder, capsys, where):
    learn = learner(folder, MixUp() if where=='learner' else None)
    learn.fit_long(1, cbs=dict(fit=CutMix(), **{'class':CutMix}).get(where))
    assert capsys.readouterr().out=='' and [type(cb) for cb in learn.cbs if isinstance(cb, MixHandler)]==([MixUp] if where=='learner' else [])

def tensors(x, y, n=32, **kw):
    ds = list(zip(x,y))
    return DataLoaders(DataLoader(ds[:n], bs=8, shuffle=True), DataLoader(ds[n:], bs=8), **kw)

def test_recommended_for_vectors_and_tokens(capsys, folder):
    "Vectors have nothing to cut; whole numbers cannot be blended, and what to do is said"
    y = torch.arange(48)%3
    learn = Learner(tensors(torch.randn(48,5), y, path=folder), nn.Linear(5,3), CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_long(1)
    assert 'so MixUp is added' in capsys.readouterr().out and learn.recorder.hps['mix_prob'][0]==1
    learn = Learner(tensors(torch.randint(9,(48,5)), y, path=folder), nn.Sequential(nn.Embedding(9,4), Flatten(), nn.Linear(20,3)), CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_long(1)
    out = capsys.readouterr().out
    assert 'none is added: an input of torch.int64 cannot be blended' in out and 'ManifoldMixUp' in out and 'mix_prob' not in learn.recorder.hps

def test_looking_at_the_data_moves_no_random_number(folder):
    "The fit with the recommended callbacks is the fit with the same callbacks given"
    def one(cbs):
        learn = learner(folder)
        learn.fit_long(3, cbs=cbs)
        return run(learn)
    a,b = one(None),one(CutMixUp(1., 1.))
    assert torch.equal(a[0], b[0]) and same(a[3], b[3])

# --- advice

def test_advice(folder, capsys, talking):
    "Once, for a short run with mixing, and not if it is not wanted"
    learn = learner(folder, MixUp)
    learn.fit_long(1, advice=False)
    assert capsys.readouterr().out==''
    learn.fit_long(1)
    out = capsys.readouterr().out
    assert '1 epochs are few for mixing' in out and 'advice=False' in out
    learn.fit_long(2)
    assert capsys.readouterr().out==''

def test_no_advice(folder, capsys, talking):
    learner(folder).fit_long(1, schedule=None)                     # no mixing
    learner(folder, MixUp, n=40).fit_long(LONG.short)              # long enough
    assert capsys.readouterr().out==''

# --- EMA

class Odd(nn.Module):
    "Buffers of every kind, and a parameter that is used twice"
    def __init__(self):
        super().__init__()
        self.lin,self.bn = nn.Linear(64,16),nn.BatchNorm1d(16)
        self.out = nn.Linear(16,10)
        self.register_buffer('table', torch.tensor([1,7,1000001]))
        self.register_buffer('mask', torch.tensor([True,False]))
        self.register_buffer('seen', torch.zeros(()), persistent=False)
        self.twice = self.out.bias
    def forward(self, x):
        if self.training: self.seen = self.seen+1                   # another tensor each time
        return self.out(F.relu(self.bn(self.lin(x.flatten(1)))))+self.twice

@pytest.mark.parametrize('decay', [0., .5, .99, None])
def test_ema_by_hand(folder, decay):
    "Each floating-point parameter and buffer is averaged, each whole-number one copied"
    learn,history,ema = learner(folder),[],EMA(decay, swap=False)
    learn.model,learn.splitter = Odd(),trainable_params
    def now(): return {k:v.detach().clone() for k,v in [*learn.model.named_parameters(), *learn.model.named_buffers()]}
    class Note(Callback):
        run_valid = False
        def before_train(self):
            if not self.epoch: history.append(now())
        def after_step(self): history.append(now())
    learn.fit(3, 1e-2, cbs=[Note,ema])
    assert len(history)==19
    top = decay if decay is not None else 1-1/max(1, LONG.ema_share*18)
    avg = {k:v.double() if v.is_floating_point() else v for k,v in history[0].items()}
    for n,h in enumerate(history[1:]):
        d = min(top, (1+n)/(10+n))
        avg = {k:d*avg[k]+(1-d)*h[k].double() if v.is_floating_point() else h[k] for k,v in h.items()}
    own = now()
    with ema.averaged(learn):
        for k,v in now().items(): torch.testing.assert_close(v.double(), avg[k].double(), rtol=1e-4, atol=1e-6)
        assert learn.model.table.tolist()==[1,7,1000001] and learn.model.mask.tolist()==[True,False] and learn.model.bn.num_batches_tracked==18
    assert same(now(), own)
    if decay==.99: assert not torch.equal(own['lin.weight'], ema._avg['lin.weight']) and ema._avg['seen']<18

def test_ema_is_a_bystander(folder):
    "With dropout, mixing and shuffling: the weights take the same course with an average beside them, validated or not"
    def one(ema, **kw):
        learn = learner(folder, MixUp, p=.5)
        learn.fit_long(4, 1e-2, ema=ema, **kw)
        return run(learn)
    a,b,c = one(None),one(EMA(.9, swap=False)),one(EMA(.9, swap=False, validate=False))
    for o in (b,c): assert torch.equal(a[0], o[0]) and a[2]==o[2] and same(a[3], o[3])

@pytest.mark.parametrize('swap', [True,False])
def test_ema_columns_and_end(folder, swap):
    "The columns are what the averaged weights reach, and the model ends with them, or with its own"
    learn,ema = learner(folder, MixUp),EMA(.8, swap=swap)
    learn.fit_long(4, 1e-2, ema=ema)
    names,row = list(learn.recorder.metric_names),learn.recorder.values[-1]
    assert names[:6]==['epoch','train_loss','valid_loss','accuracy','ema_valid_loss','ema_accuracy'] and row[1]!=row[3]
    np.testing.assert_allclose(learn.validate(), row[3:5] if swap else row[1:3], rtol=1e-5)
    with ema.averaged(learn): np.testing.assert_allclose(learn.validate(), row[3:5], rtol=1e-5)
    assert 'ema' not in vars(learn) and ema.learn is None

def test_ema_values(folder):
    "`True`, a decay, an `EMA`; the length of its memory follows the run, and counts steps of the optimizer"
    seen = {}
    class Look(Callback):
        def __init__(self, k): self.k = k
        def after_train(self): seen[self.k] = self.learn.ema.decay,self.learn.ema._n
        def after_step(self):
            if self.learn.ema._n>160: seen[f'{self.k} last'] = self.learn.ema._decay_now()
    for k,ema,cbs in [('true',True,[]), ('number',.7,[]), ('own',EMA(.6),[]), ('accumulated',True,[GradientAccumulation(40)])]:
        learner(folder).fit_long(2 if k!='true' else 30, ema=ema, schedule=None, columns=False, cbs=[Look(k),*cbs])
    assert seen['true'][0] is None and seen['number']==(.7,12) and seen['own']==(.6,12) and seen['accumulated'][1]==6
    assert abs(seen['true last']-(1-1/(.04*180)))<1e-9

def test_ema_of_half_precision(folder):
    "Small changes are not lost to the rounding of bfloat16"
    w,ema = torch.ones(3, dtype=torch.bfloat16),{'w':torch.ones(3)}
    for _ in range(10): recipe_ema._move_average(ema, {'w':w+.25}, .999)
    torch.testing.assert_close(ema['w'], torch.full((3,), 1+.25*(1-.999**10)))
    assert recipe_ema._to_keep(w).dtype==torch.float32

class CPUMixed(MixedPrecision):
    "Mixed precision with a gradient scaler that works without a GPU"
    def __init__(self, scale): super().__init__(); self.scale0 = scale
    def before_fit(self):
        self.autocast,self.learn.scaler,self.scales = autocast('cpu', dtype=torch.bfloat16),GradScaler('cpu', init_scale=self.scale0),L()

def test_ema_and_skipped_steps(folder):
    "A step that overflows is no step"
    class Overflow(Callback):
        run_valid,counts = False,[]
        def after_backward(self):
            if self.train_iter in (0,4,5): self.model[0].weight.grad[0] = float('inf')
        def after_batch(self): self.counts.append(self.learn.ema._n)
    learn,ema = learner(folder, CPUMixed(2.**10)),EMA(.9, swap=False)
    learn.fit(2, 1e-2, cbs=[ema,Overflow])
    assert Overflow.counts==[0,1,2,3,3,3,4,5,6,7,8,9]

def test_ema_for_good(folder):
    "On a learner for good: each fit averages anew; `lr_find`, `validate`, `get_preds` and `predict` leave it alone"
    learn = learner(folder, EMA(.8, swap=False))
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=())
    assert learn.ema._avg is None
    learn.fit(2, 1e-2)
    avg,own = copy.deepcopy(learn.ema._avg),weights(learn)
    assert len(learn.validate())==2
    learn.get_preds(); learn.predict(1); learn.lr_find(num_it=6, show_plot=False, suggest_funcs=())
    assert same(learn.ema._avg, avg) and same(weights(learn), own)
    learn.fit(1, 1e-2)
    assert learn.ema._n==6
    learn.export('e.pkl')
    assert 'ema' not in [cb.name for cb in load_learner(learn.path/'e.pkl').cbs]       # it has no part in a prediction

def test_ema_without(folder):
    with pytest.raises(ValueError, match='no averaged weights yet'):
        with EMA().averaged(learner(folder)): pass

@pytest.mark.parametrize('monitor', ['ema_valid_loss','ema_accuracy'])
def test_ema_is_monitored(folder, monitor):
    learn = learner(folder, [SaveModelCallback(monitor=monitor, fname='best'), EarlyStoppingCallback(monitor=monitor, patience=9)])
    seen = []
    class Note(Callback):
        def after_train(self): seen.append({k:t.clone() for k,t in self.learn.ema._avg.items()})
    learn.fit_long(3, 1e-2, ema=.5, schedule=None, cbs=Note)
    i = list(learn.recorder.metric_names[1:]).index(monitor)
    values = [r[i] for r in learn.recorder.values]
    assert learn.save_model.best == (min if 'loss' in monitor else max)(values)
    best = seen[values.index(learn.save_model.best)]                               # the averaged weights of that epoch …
    assert all(torch.equal(t, best[k]) for k,t in learn.model.state_dict().items())
    announced = learn.save_model.best
    learn.remove_cbs([learn.save_model, learn.early_stopping])
    assert learn.validate()[0 if 'loss' in monitor else 1]==pytest.approx(announced, abs=1e-6)   # … which do what was announced

def test_early_stopping_swaps(folder):
    "A run that is ended by a callback ends as other runs do"
    learn = learner(folder, EarlyStoppingCallback(patience=1))
    learn.fit_long(20, 1e-6, ema=EMA(.9), schedule=None)
    row = learn.recorder.values[-1]
    assert len(learn.recorder.values)<20
    np.testing.assert_allclose(learn.validate(), row[3:5], rtol=1e-5)

class InValid(Callback):
    "In the second validation: raises in the model's run number `k`, the first with its own weights, the second with the averaged ones"
    run_train = False
    def __init__(self, ex, k): self.ex,self.k,self.count = ex,k,0
    def before_validate(self):
        if self.epoch!=1: return
        def count(*args):
            self.count += 1
            if self.count==self.k:
                handle.remove()
                raise self.ex('on purpose')
        handle = self.model.register_forward_pre_hook(count)

@pytest.mark.parametrize('ex', [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize('k', [1,2])
def test_interrupted_while_validating(folder, ex, k):
    "The model has its own weights again, whichever weights were being validated"
    seen = []
    class Note(Callback):
        def after_train(self): seen.append(weights(self.learn))
    learn = learner(folder, MixUp)
    with pytest.raises(ex): learn.fit_long(3, 1e-2, ema=EMA(.9, swap=False), cbs=[InValid(ex, k), Note])
    assert same(weights(learn), seen[1])

@pytest.mark.parametrize('k', [1,2])
def test_cancelled_while_validating(folder, k):
    learn = learner(folder, MixUp)
    learn.fit_long(3, 1e-2, ema=.9, cbs=InValid(CancelValidException, k))
    assert len(learn.recorder.values)==3 and len(learn.recorder.values[2])==len(learn.recorder.metric_names)-2

# --- clipping

class Norm(Callback):
    "The norm of the gradients that the optimizer gets"
    order = 12
    def __init__(self): self.norms = []
    def before_step(self): self.norms.append(torch.cat([p.grad.view(-1) for p in self.model.parameters() if p.grad is not None]).norm().item())

@pytest.mark.parametrize('how', ['plain','accumulate','fp16','frozen'])
def test_clip(folder, how):
    "What the optimizer gets is no longer than `clip`, in true units"
    def norms(clip):
        learn,norm = learner(folder, CPUMixed(2.**12) if how=='fp16' else GradientAccumulation(40) if how=='accumulate' else None),Norm()
        if how=='frozen': learn.freeze()
        learn.fit_long(2, 1e-8, clip=clip, schedule=None, cbs=norm)
        return np.array(norm.norms)
    free = norms(None)
    assert len(free)==(6 if how=='accumulate' else 12)
    c = float(np.median(free))
    np.testing.assert_allclose(norms(c), free.clip(max=c), rtol=2e-2)

# --- nothing is left behind

class Raise(Callback):
    "Raises `ex` at the second event `ev`, or at the first if there is one only"
    def __init__(self, ev, ex, order): self.ev,self.ex,self.order,self.count = ev,ex,order,0
    def __call__(self, ev):
        if ev!=self.ev: return
        self.count += 1
        if self.count==(1 if ev in ('before_fit','after_fit') else 2): raise self.ex('on purpose')

events = [e for e in _events if 'cancel' not in e and e!='after_create']
@pytest.mark.every(5)
@pytest.mark.parametrize('ev', events)
@pytest.mark.parametrize('ex', [KeyboardInterrupt, RuntimeError, CancelFitException])
@pytest.mark.parametrize('order', [-20,90])
def test_nothing_is_left(folder, ev, ex, order):
    "The learner has its callbacks, its logger and its loss; its callbacks have their schedules; and the next fit is as if nothing had been"
    def log(row): pass
    learn = learner(folder, [CutMix(), GradientClip(2.)])
    learn.logger = log
    loss_func,cbs,names = learn.loss_func,list(learn.cbs),set(vars(learn))
    csv = [CSVLogger] if (ev,ex,order)!=('before_fit',CancelFitException,-20) else []     # fastai's closes a file that it has not opened
    def fit(): learn.fit_long(2, 1e-2, ema=.9, clip=1., cbs=[MixUp, *csv, Raise(ev, ex, order)])
    with contextlib.nullcontext() if ex is CancelFitException and ev!='after_fit' else pytest.raises(ex): fit()
    assert learn.logger is log and learn.loss_func is loss_func and learn.cut_mix.schedule is None
    assert [id(o) for o in learn.cbs]==[id(o) for o in cbs] and all(getattr(learn, cb.name) is cb and cb.learn is learn for cb in cbs)
    assert not {'mix_up','ema','mix_recorder','param_scheduler','raise','c_s_v_logger','csv_logger'} & set(vars(learn))
    learn.fit_long(1, 1e-2, ema=.9)
    assert len(learn.recorder.losses)==6 and len(learn.validate())==2

def test_ones_own_stand_in(folder):
    "Callbacks of one's own are not doubled, whether in the learner or in the fit"
    learn = learner(folder, [MixUp(), GradientClip(3.), EMA(.5, swap=False)])
    class Look(Callback):
        def before_train(self): self.learn.types = [type(cb) for cb in self.learn.cbs]
    learn.fit_long(1, ema=.9, clip=1., cbs=[Look, MixRecorder(columns=False)])
    assert all(learn.types.count(o)==1 for o in (GradientClip,EMA,MixRecorder,MixUp))
    assert learn.ema._n==6 and learn.gradient_clip.max_norm==3 and 'lr' not in learn.recorder.metric_names

def test_class_of_ones_own(folder):
    "A class in the fit that the learner has an instance of: the instance stays"
    learn = learner(folder, MixUp(alpha=.7))
    cb = learn.mix_up
    learn.fit_long(1, cbs=MixUp)
    assert learn.mix_up is cb and cb in list(learn.cbs)
    learn.fit_long(1, cbs=cb)
    assert learn.mix_up is cb and cb.learn is learn and len([o for o in learn.cbs if isinstance(o, MixUp)])==1

@pytest.mark.parametrize('kw,said', [
    (dict(n_epoch=0), 'n_epoch=0: must be a whole number, 1 or more'), (dict(n_epoch=2.5), 'n_epoch=2.5'), (dict(schedule=.85), 'schedule=0.85: must be None or a function'),
    (dict(schedule=lambda p: 3*p), 'the probability is'), (dict(ema=1.), 'ema=1.0: must be a number from 0 to below 1'), (dict(ema='yes'), "ema='yes'"),
    (dict(clip=0), 'clip=0: must be a number above 0'), (dict(clip=-1), 'clip=-1'), (dict(clip='1'), "clip='1'"), (dict(save=''), "name=''"), (dict(save='a', start_epoch=1), 'start_epoch')])
def test_refused(folder, kw, said):
    learn = learner(folder, MixUp)
    before = weights(learn)
    with pytest.raises(ValueError) as e: learn.fit_long(**{**dict(n_epoch=2), **kw})
    assert said in str(e.value) and same(weights(learn), before) and learn.mix_up.schedule is None
    assert not any(isinstance(cb, (MixRecorder,Resume)) for cb in learn.cbs)

# --- the table, and going on

def test_history_csv(folder):
    "The whole run is in `history.csv`, with every column"
    learn = learner(folder, [MixUp(), CSVLogger()])
    learn.fit_long(4, 1e-2, ema=True, schedule=off_after(2))
    df = learn.csv_logger.read_log()
    assert list(df.columns)==['epoch','train_loss','valid_loss','accuracy','ema_valid_loss','ema_accuracy','lr','mom','mix_prob','mix_weight','time']
    assert list(df.mix_prob)==[1,1,0,0] and list(df.lr)==learn.recorder.hps['lr'][5::6]
    np.testing.assert_allclose(df.mix_weight, np.array(learn.recorder.hps['mix_weight']).reshape(4,6).mean(1), rtol=1e-6)

def full(learn, ema): return weights(learn), copy.deepcopy(ema._avg), learn.recorder.hps, torch.stack(learn.recorder.losses), learn.recorder.values

@pytest.mark.every(5)
@pytest.mark.parametrize('stop', [0,1,4])
@pytest.mark.parametrize('swap', [True,False])
@pytest.mark.parametrize('cbs', [None, 'own'])
def test_resumed(folder, stop, swap, cbs):
    "Interrupted, and the same call again: weights, average, curves and table are those of a run that was never interrupted, bit by bit"
    def fit(name):
        learn,ema = learner(folder, [CutMixUp(), CSVLogger(f'{name}.csv')] if cbs else CSVLogger(f'{name}.csv'), p=.5),EMA(.9, swap=swap)
        learn.fit_long(6, 1e-2, save=name, ema=ema, clip=.5, cbs=Stop(stop))
        return full(learn, ema)
    with pytest.raises(KeyboardInterrupt): fit('stopped')
    Stop.armed = False
    a,b = fit('stopped'),fit('whole')
    assert same(a[0], b[0]) and same(a[1], b[1]) and a[2]==b[2] and torch.equal(a[3], b[3])
    assert [r[:-1] for r in a[4]]==[r[:-1] for r in b[4]]
    def rows(name): return [l.rpartition(',')[0] for l in (folder/f'{name}.csv').read_text().splitlines()]
    assert rows('stopped')==rows('whole') and len(rows('whole'))==7
    again = fit('stopped')                                          # finished: trains no more, and the learner is what it was at the end
    assert same(again[0], a[0]) and same(again[1], a[1]) and again[2]==a[2]

def test_resumed_with_another_setting(folder):
    "Other settings are refused, with the difference named"
    def fit(**kw): learner(folder, MixUp).fit_long(**{**dict(n_epoch=4, lr_max=1e-2, save='r', ema=.9, cbs=Stop(2)), **kw})
    with pytest.raises(KeyboardInterrupt): fit()
    Stop.armed = False
    for kw,said in [(dict(schedule=hesitation()),'schedule'), (dict(ema=.8),'decay'), (dict(clip=1.),'GradientClip'), (dict(n_epoch=5),'epochs'), (dict(ema=None),'EMA')]:
        with pytest.raises(ValueError, match=said): fit(**kw)
    fit()

def test_plain_dataloaders(folder):
    "PyTorch's own data loaders"
    x,y = torch.randn(48,1,8,8),torch.arange(48)%3
    ds = torch.utils.data.TensorDataset(x, y)
    dl = lambda **kw: torch.utils.data.DataLoader(ds, batch_size=8, **kw)
    learn = Learner(DataLoaders(dl(shuffle=True), dl(), path=folder), net(3), nn.CrossEntropyLoss(), path=folder)
    with learn.no_bar(), learn.no_logging(): learn.fit_long(2, ema=True, clip=1.)
    assert len(learn.recorder.hps['mix_weight'])==12 and learn.recorder.hps['mix_weight'][0]>0

def test_discriminative_and_frozen(folder):
    "A slice of learning rates, a frozen part: it stays as it is, and so does its average"
    learn = learner(folder, MixUp)
    learn.freeze()
    frozen = learn.model[0].weight.detach().clone()
    ema = EMA(.9, swap=False)
    learn.fit_long(2, slice(1e-4,1e-2), ema=ema)
    assert torch.equal(learn.model[0].weight, frozen) and torch.equal(ema._avg['0.weight'], frozen) and not torch.equal(ema._avg['6.weight'], learn.model[6].weight)
    learn.unfreeze()
    learn.fit_long(2, slice(1e-4,1e-2), ema=True)
    assert not torch.equal(learn.model[0].weight, frozen)

def test_exported_afterwards(folder):
    learn = learner(folder, MixUp)
    learn.fit_long(2, 1e-2, ema=.9)
    preds = learn.get_preds()[0]
    learn.export('x.pkl')
    other = load_learner(learn.path/'x.pkl')
    torch.testing.assert_close(other.get_preds(dl=other.dls.test_dl(list(range(0,160,4)), with_labels=False))[0], preds)
    pickle.loads(pickle.dumps(learn)).fit_long(1)
