"Schedules: their values at every point and step, in every run; and what the recorder keeps of them."
from digits import *
import copy, pickle
from fractions import Fraction
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.schedule import SchedExp, SchedPoly
from fastai.callback.training import GradientAccumulation
from fastmix.callback import *
from fastmix.draw import MODES
from fastmix.record import *
from fastmix.schedule import *

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return digit_dls(160, 20, path=tmp_path_factory.mktemp('schedule'))  # 6 batches of 120 images

def learner(dls, cbs=None, **kw):
    learn = Learner(dls, net(), metrics=accuracy, cbs=cbs, **kw)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

some = [MixSchedule(), MixSchedule(.3), MixSchedule(SchedCos(0,1), SchedExp(1,.1)), MixSchedule(SchedPoly(1,0,3)), warm_up(), warm_up(3, .2, SchedCos), warm_up(0.),
        off_after(), off_after(7), off_after(.5, fade=.5), off_after(8, fade=.1), off_after(.5, fade=3, curve=SchedCos), off_after(0), off_after(1.),
        hesitation(), hesitation(3, 7), hesitation(0., 1.), hesitation(.5, .5), hesitation(.31, 9), off_after(.9)*warm_up(2)*MixSchedule(strength=.5), off_after(.9)*SchedLin(1,0)]
any_schedule = pytest.mark.parametrize('s', some, ids=repr)

@any_schedule
def test_values(s):
    "Both factors are in [0,1] everywhere, for runs of any length"
    for n in (1,2,7,10,80):
        for p in np.linspace(0, 1, 301):
            o = s(float(p), n)
            assert isinstance(o, tuple) and len(o)==2 and all(type(v) is float and 0<=v<=1 for v in o), (n,p,o)

@any_schedule
def test_copies(s):
    "Pickles, copies and a reading of what is printed give the same values"
    copies = [copy.copy(s), copy.deepcopy(s)]
    if 'SchedPoly' not in repr(s): copies += [pickle.loads(pickle.dumps(s)), eval(repr(s))]
    for c in copies:
        assert repr(c)==repr(s) and ' at 0x' not in repr(s)
        for p in np.linspace(0, 1, 101): assert c(p, 10)==s(p, 10)

@pytest.mark.parametrize('share,epochs', [(off_after(.75), off_after(9)), (warm_up(.25), warm_up(3)), (off_after(.75,.25), off_after(9,3)), (hesitation(.25,.75), hesitation(3,9))])
def test_epochs_are_shares(share, epochs):
    for p in np.linspace(0, 1, 241): np.testing.assert_allclose(share(p, 12), epochs(p, 12), atol=1e-12)
    with pytest.raises(ValueError, match='counts epochs'): epochs(.5)

def progress(n_epoch, n_iter):
    "Progress before each batch, added up as fastai does, and as it should be"
    for e in range(n_epoch):
        p = e/n_epoch
        for i in range(n_iter):
            yield p, Fraction(e*n_iter+i, n_epoch*n_iter)
            p += 1./(n_iter*n_epoch)

@pytest.mark.parametrize('n_epoch', [1,3,7,10,80])
@pytest.mark.parametrize('n_iter', [1,3,10,49,128])
def test_no_step_is_lost_to_rounding(n_epoch, n_iter):
    "Phases change in the very step that they should, although progress is a rounded sum"
    steps = n_epoch*n_iter
    ends = {Fraction(k, 20) for k in range(0, 21, 1 if steps<1000 else 3)} | {Fraction(k, steps) for k in range(0, steps, max(1, steps//7))}
    for end in sorted(ends):
        off,up,hes = off_after(float(end)),warm_up(float(end)),hesitation(float(end), 1.)
        for p,true in progress(n_epoch, n_iter):
            assert off(p).prob == (true<end)
            assert (up(p).prob==1) == (true>=end)
            epoch,first = int(true*n_epoch),int(end*n_epoch)
            assert hes(p, n_epoch).prob == (1 if true<end else (epoch-first)%2)

def test_same_as_combined():
    "The phases are those of fastai's `combine_scheds`"
    lin,cos = combine_scheds([.25,.75], [SchedLin(0,1), SchedNo(1,1)]),combine_scheds([.5,.25,.25], [SchedNo(1,1), SchedCos(1,0), SchedNo(0,0)])
    for p in np.linspace(0, .999, 500):
        assert abs(warm_up(.25)(p).prob-lin(p))<1e-5
        assert abs(off_after(.75, .25, SchedCos)(p).prob-cos(p))<1e-5
        np.testing.assert_allclose(MixSchedule(lin, cos)(p), (lin(p),cos(p)))

@pytest.mark.parametrize('f,said', [
    (lambda: MixSchedule(-.1), 'prob=-0.1: must be a number from 0 to 1'), (lambda: MixSchedule(strength=float('nan')), 'strength=nan'), (lambda: MixSchedule('x'), "prob='x'"),
    (lambda: warm_up(-1), 'end=-1: must be a share'), (lambda: warm_up(True), 'end=True'), (lambda: warm_up(start=2), 'start=2: must be a number from 0 to 1'),
    (lambda: off_after(1.2), 'end=1.2: must be a share of the run'), (lambda: off_after(None), 'end=None'), (lambda: off_after(.5, fade=.6), 'fade=0.6: must be no longer than end=0.5'),
    (lambda: warm_up(.1, curve=3), 'curve=3: must be a function'), (lambda: off_after(.5, .1, 'cos'), "curve='cos'"),
    (lambda: hesitation(5, 3), 'alternate=3: must not be before always=5'), (lambda: hesitation(-.1), 'always=-0.1'), (lambda: hesitation()(.7), 'n_epoch'),
    (lambda: MixUp(schedule=.5), 'schedule=0.5: must be None or a function'), (lambda: MixSchedule(SchedLin(0,2))(.9), 'probability is 1.8 at progress 0.9'),
    (lambda: MixSchedule(1., lambda p: float('nan'))(.9), 'strength is nan')])
def test_refused(f, said):
    with pytest.raises(ValueError) as e: f()
    assert said in str(e.value)

def test_product_of_a_number():
    with pytest.raises(TypeError, match='is no schedule'): off_after()*2

@pytest.mark.parametrize('v', [1.5, -.1, float('nan'), (1.,2.), (.5,-1.), None, [1.], (1.,1.,1.), 'x'])
def test_wrong_function(dls, v):
    "A function of one's own that leaves [0,1] is reported with the progress, and the learner is as good as before"
    learn = learner(dls, MixUp(schedule=lambda p: 1. if p<.4 else v))
    with pytest.raises(ValueError, match='at progress 0.4167'): learn.fit(2)
    learn.mix_up.schedule = None
    learn.fit(1)

class Look(Callback):
    "What the callback `name` did in each training batch"
    order,run_valid = 1,False
    def __init__(self, name): self.which,self.seen = name,[]
    def after_pred(self):
        cb = getattr(self.learn, self.which)
        self.seen.append((self.epoch, self.iter, (cb.batch.prob, cb.batch.strength), cb.plan))

@pytest.mark.every(2)
@any_schedule
def test_in_a_fit(dls, s):
    "In each step chance and strength are what the schedule says for it"
    look = Look('mix_up')
    learner(dls, MixUp(prob=.9, schedule=s)).fit(4, cbs=look)
    assert len(look.seen)==24
    for e,i,now,plan in look.seen:
        p,strength = s((e+i/6)/4, 4)
        np.testing.assert_allclose(now, (.9*p,strength), atol=1e-9)
        if p==0 or strength==0: assert not plan.mixes and plan.lam.min()==1

@pytest.mark.parametrize('start', [0,3,9])
def test_start_epoch(dls, start):
    look = Look('mix_up')
    learner(dls, MixUp(schedule=hesitation())).fit_one_cycle(10, 1e-2, start_epoch=start, cbs=look)
    assert [(e,now[0]) for e,i,now,_ in look.seen if not i] == [(e,hesitation()(e/10, 10).prob) for e in range(start, 10)]

def test_rests_during_lr_find(dls):
    learn = learner(dls, [MixUp(prob=.7, schedule=warm_up(1.)), MixRecorder()])
    look = Look('mix_up')
    learn.add_cb(look)
    learn.lr_find(num_it=12, show_plot=False, suggest_funcs=())
    assert len(look.seen)>5 and {now for *_,now,_ in look.seen}=={(.7,1.)}
    assert 'hps' not in vars(learn.recorder)

def test_each_its_own(dls):
    "Two callbacks on a learner follow a schedule each"
    learn = learner(dls, [MixUp(schedule=off_after(.5)), CutMix(schedule=warm_up(.5)), MixRecorder()])
    learn.fit(10)
    first,second = np.array(learn.recorder.hps['mix_prob']).reshape(2,-1)
    assert set(second)=={0.,1.} and (first<1).any() and (first==1).any()

@pytest.mark.every(5)
@pytest.mark.parametrize('make', [MixUp, CutMix, partial(CutMix, minmax=(.3,.7)), CutMixUp], ids=lambda o: getattr(o, '__name__', 'minmax'))
@pytest.mark.parametrize('mode', MODES)
def test_how_much_is_mixed(make, mode):
    "Over many batches, the mixed share is the chance, and what is given away shrinks with the strength"
    def given(prob, strength):
        cb = make(mode=mode)
        cb.rng = np.random.default_rng(1)
        g = 1-np.stack([cb.draw(16, (64,64), prob, strength).lam for _ in range(2000)])
        return g, (g>0).mean(), g.mean()
    g1,n1,m1 = given(1., 1.)
    gp,np_,mp = given(.4, 1.)
    se = 3.5*np.sqrt(.24/2000*(16 if mode=='batch' else 2)/16)   # of the share of mixed units
    assert abs(np_-.4*n1)<se+.01 and abs(mp-.4*m1)<.03
    gs,ns,ms = given(1., .5)
    assert abs(ms-.5*m1)<.05*m1+.01 and gs.max()<=max(.5*g1.max(), .5)+.02
    assert given(1., 0.)[2]==0

def test_exported(dls):
    "A learner with a schedule is pickled whole, and exported without it: what is served does not mix"
    learn = learner(dls, MixUp(schedule=off_after(.85, fade=5)*warm_up(2)))
    learn.fit(1)
    learn.export('s.pkl')
    served = load_learner(learn.path/'s.pkl')
    assert not [cb for cb in served.cbs if type(cb).__module__.startswith('fastmix')]
    assert torch.equal(served.model[0].weight, learn.model[0].weight)
    whole = pickle.loads(pickle.dumps(learn))
    assert repr(whole.mix_up.schedule)==repr(learn.mix_up.schedule)
    whole.fit(1)

def test_plot():
    import matplotlib.pyplot as plt
    s = off_after(.5)*MixSchedule(strength=SchedLin(1,0))
    ax = s.plot(n_epoch=10)
    prob,strength = [l.get_data() for l in ax.lines]
    np.testing.assert_allclose(strength[1], 1-strength[0]/10, atol=1e-9)
    assert ((prob[0]<5)==(prob[1]==1)).all() and ax.get_title()==repr(s)
    assert s.plot(ax=ax) is ax
    plt.close('all')

# --- MixRecorder

mixed = pytest.mark.parametrize('cbs', [None, MixUp, CutMixUp, [MixUp(prob=.5), CutMix()]], ids=['none','mixup','cutmixup','two'])

@mixed
@pytest.mark.parametrize('fit', ['fit','fit_one_cycle','fit_flat_cos'])
def test_recorder(dls, cbs, fit):
    "Each step: learning rate and momentum of the optimizer, chance and mean weight of the plan. Each epoch: the last, or the mean"
    class Truth(Callback):
        order,run_valid = 20,False
        def __init__(self): self.rows = []
        def before_step(self):
            h,cb = self.opt.hypers[-1],next((cb for cb in self.learn.cbs if isinstance(cb, MixHandler) and cb.plan is not None), None)
            self.rows.append((h['lr'], h['mom'], *((cb.prob, (1-cb.lam).mean().item()) if cb else ())))
    learn,truth = learner(dls, cbs),Truth()
    getattr(learn, fit)(3, 1e-2, cbs=[MixRecorder(), truth])
    hps,names = learn.recorder.hps,['lr','mom']+['mix_prob','mix_weight']*(cbs is not None)
    assert list(hps)==names and all(len(v)==18 for v in hps.values())
    np.testing.assert_allclose(np.array(list(hps.values())).T, truth.rows, atol=1e-6)
    assert list(learn.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy',*names,'time']
    for e,row in enumerate(learn.recorder.values):
        rows = np.array(truth.rows)[6*e:6*e+6]
        np.testing.assert_allclose(row[3:], [*rows[-1,:2], *rows[:,2:].mean(0)], atol=1e-6)
    learn.fit(1)
    assert len(learn.recorder.values[0])==3         # nothing is left of it in the next fit

def test_no_sync(dls):
    "Recording runs no operation on any tensor, so it cannot wait for a device"
    class Never(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None): raise AssertionError(f'{f} was called')
    class Strict(MixRecorder):
        steps = 0
        def after_batch(self):
            with Never(): super().after_batch()
            Strict.steps += 1
    learner(dls, MixUp()).fit(1, cbs=Strict())
    assert Strict.steps==6
    with pytest.raises(AssertionError, match='was called'), Never(): torch.ones(2).mean().item()

def test_history_csv(dls):
    learn = learner(dls, [MixUp(schedule=off_after(.5)), MixRecorder(), CSVLogger()])
    learn.fit_one_cycle(2, 1e-2)
    df = learn.csv_logger.read_log()
    assert list(df.columns)==list(learn.recorder.metric_names)
    np.testing.assert_allclose(df.iloc[:,1:-1].values, learn.recorder.values, rtol=1e-6)
    assert list(df.mix_prob)==[1,0]

@pytest.mark.parametrize('train_metrics,valid_metrics,add_time', [(True,True,True), (True,True,False), (True,False,False)])
def test_columns_of_every_recorder(dls, train_metrics, valid_metrics, add_time):
    "Each row has a value for each column, in their order"
    learn = learner(dls, [MixUp(), MixRecorder()])
    learn.recorder.train_metrics,learn.recorder.valid_metrics,learn.recorder.add_time = train_metrics,valid_metrics,add_time
    rows = []
    learn.logger = rows.append
    learn.fit_one_cycle(2, 1e-2)
    names = learn.recorder.metric_names
    assert all(len(r)==len(names) for r in rows) and len(names)==len(set(names))
    assert list(names[-1-4:-1] if add_time else names[-4:])==['lr','mom','mix_prob','mix_weight']
    assert rows[1][list(names).index('mix_prob')]==1. and rows[1][list(names).index('lr')]==learn.recorder.lrs[-1]

def test_without_columns(dls):
    learn = learner(dls, [MixUp(), MixRecorder(columns=False)])
    learn.fit_one_cycle(1)
    assert len(learn.recorder.values[0])==3 and len(learn.recorder.hps['mix_weight'])==6

def test_only_runs_are_recorded(dls):
    "On a learner for good, it takes no notice of validation, predictions and `lr_find`"
    learn = learner(dls, [MixUp(), MixRecorder()])
    loss,acc = learn.validate()
    learn.fit_one_cycle(2, 1e-2)
    hps = copy.deepcopy(learn.recorder.hps)
    assert len(learn.validate())==2
    learn.get_preds(); learn.predict(1)
    assert learn.recorder.hps==hps
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=())
    learn.fit(1)
    assert len(learn.recorder.hps['mix_prob'])==6

@pytest.mark.parametrize('ex', [KeyboardInterrupt, RuntimeError])
def test_interrupted(dls, ex):
    "What was recorded before an exception is there"
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.train_iter==8: raise ex('on purpose')
    learn = learner(dls, [MixUp(), MixRecorder()])
    with pytest.raises(ex): learn.fit_one_cycle(3, cbs=Stop())
    assert len(learn.recorder.hps['mix_prob'])==8

def test_state(dls):
    "Its state is plain tensors, and brings the curves back"
    learn = learner(dls, [MixUp(), MixRecorder()])
    learn.fit_one_cycle(2)
    state = {}
    class Save(Callback):
        order = 99
        def after_epoch(self): state.update(self.learn.mix_recorder.state_dict())
    learn.fit_one_cycle(2, cbs=Save)
    hps = state['hps']
    assert len(hps)==4 and all(type(v) is torch.Tensor and len(v)==12 for v in hps.values())
    other = learner(dls, [MixUp(), MixRecorder()]).mix_recorder
    other.load_state_dict(state)
    again = other.state_dict()
    assert again['start']==state['start'] and again['hps'].keys()==hps.keys() and all(torch.equal(v, hps[k]) for k,v in again['hps'].items())

def test_accumulated_and_wrapped(dls):
    "Batches whose gradients are accumulated are steps of the run too; PyTorch's own optimizers have their names translated"
    learn = learner(dls, [MixUp(), MixRecorder(), GradientAccumulation(40)], opt_func=partial(OptimWrapper, opt=torch.optim.RMSprop))
    learn.fit(1)
    assert len(learn.recorder.hps['mix_prob'])==6 and 'mom' in learn.recorder.hps
