"""However a fit ends, the learner is as good as before: every event x every exception, raised before or after ours, by the model, by
the loss, by the data loader."""
import itertools,pickle
import pytest, torch
from digits import *
from copy import deepcopy
from fastai.callback.core import _events
from fastai.callback.progress import ProgressCallback
from fastcore.test import test_is as is_same
from fastmix.callback import *

cancels = [CancelBatchException, CancelBackwardException, CancelEpochException, CancelFitException, CancelStepException, CancelTrainException, CancelValidException]
exceptions = cancels + [KeyboardInterrupt, RuntimeError]
by_name = {o.__name__:o for o in exceptions}    # fastai's own do not pickle, and these learners are pickled
# events that happen only after a cancel: what brings them about
cause = dict(after_cancel_backward=('before_backward', CancelBackwardException), after_cancel_step=('before_step', CancelStepException),
             after_cancel_batch=('after_pred', CancelBatchException), after_cancel_train=('before_batch', CancelTrainException),
             after_cancel_validate=('before_validate', CancelValidException), after_cancel_epoch=('before_train', CancelEpochException),
             after_cancel_fit=('before_epoch', CancelFitException))

class Raise(Callback):
    "Raises `ex` at its second chance, so that mixing has begun, or at its first, where there is one chance only"
    def __init__(self, ev, ex, order, chances=2): self.ev,self.ex,self.order,self.count = ev,ex,order,2-chances
    def __call__(self, ev):
        if ev!=self.ev: return
        self.count += 1
        if self.count==2: raise self.ex('on purpose')

def once(ev): return ev in ('before_fit','after_fit','after_cancel_fit') or ev.startswith('after_cancel_') and ev not in ('after_cancel_batch','after_cancel_step','after_cancel_backward')

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return digit_dls(48, 12, path=tmp_path_factory.mktemp('ends'))

def learner(dls, cbs=None, model=None, **kw):
    learn = Learner(dls, model or net(), metrics=accuracy, cbs=cbs, **kw)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def good_as_new(learn, loss_func):
    "Everything that a learner is for still works, with the user's own loss"
    is_same(learn.loss_func, loss_func)
    learn.fit(1)
    is_same(learn.loss_func, loss_func)
    loss,acc = learn.validate()
    preds,targs = learn.get_preds()
    assert torch.allclose(preds.sum(1), torch.ones(len(preds)), atol=1e-4)                                    # the loss's own activation
    assert abs(loss - F.nll_loss(preds.log(), targs).item()) < 1e-3
    dec,idx,probs = learn.predict(1)
    assert abs(probs.sum().item()-1) < 1e-4
    learn.export('e.pkl')
    other = load_learner(learn.path/'e.pkl')
    assert torch.allclose(other.predict(1)[2], probs, atol=1e-5)
    learn.lr_find(num_it=3, show_plot=False, suggest_funcs=())
    is_same(learn.loss_func, loss_func)
    back = pickle.loads(pickle.dumps(learn))
    assert type(back.loss_func) is type(loss_func)
    twin = deepcopy(learn)
    assert type(twin.loss_func) is type(loss_func)
    twin.fit(1)

def end(learn, cbs=None):
    "Fit, whatever comes of it"
    try: learn.fit(2, cbs=cbs)
    except BaseException as e:
        if 'on purpose' not in str(e): raise
        return e

def own_cancel(ev):
    "What stops the part of a fit that an event belongs to"
    part = ev.split('_')[-1]
    return by_name[f"Cancel{dict(pred='batch', loss='batch', validate='valid').get(part, part).title()}Exception"]

def differs(ev, ex, position):
    "Is this a case of its own? fastai treats alike what it does not catch, and what it catches in the same place"
    if position=='before': return ex is RuntimeError and ev in ('before_batch','after_pred','after_loss','after_batch','before_fit')
    return ex in (RuntimeError, own_cancel(ev)) or ex is KeyboardInterrupt and ev in ('after_pred','before_train') or ex is CancelFitException and ev in ('before_batch','after_pred','after_loss')

def cross(*values, differs):
    "All combinations; those that are no case of their own are for `-m full`"
    def case(*o): return pytest.param(*o, marks=() if differs(*o) else pytest.mark.full, id='-'.join(getattr(x, '__name__', x) for x in o))
    return [case(*o) for o in itertools.product(*values)]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('ev,ex,position', cross([e for e in _events if e!='after_create'], exceptions, ['before','after'], differs=differs))
def test_events(dls, ev, ex, position):
    learn = learner(dls, MixUp())
    loss_func = learn.loss_func
    raiser = Raise(ev, ex, MixUp.order + (1 if position=='after' else -1), 1 if once(ev) else 2)
    cbs = [raiser]
    if ev in cause: cbs.append(Raise(*cause[ev], -20))
    if 'cancel_batch' in ev or 'cancel_step' in ev or 'cancel_backward' in ev: raiser.count = 1
    end(learn, cbs=cbs)
    assert raiser.count>=2, 'the exception was never raised'
    good_as_new(learn, loss_func)

class Breaks(nn.Module):
    "A model that raises in its third training batch"
    def __init__(self, ex): super().__init__(); self.net,self.ex,self.count = net(),ex.__name__,0
    def forward(self, x):
        self.count += self.training
        if self.count==3 and self.training: raise by_name[self.ex]('on purpose')
        return self.net(x)

class BreakingLoss(CrossEntropyLossFlat):
    "Raises in its third training batch, whether it or a copy of it is called"
    count,ex = 0,None
    def __call__(self, pred, *args, **kwargs):
        if torch.is_grad_enabled() and pred.requires_grad: BreakingLoss.count += 1
        if BreakingLoss.count==3:
            BreakingLoss.count += 1
            raise by_name[self.ex]('on purpose')
        return super().__call__(pred, *args, **kwargs)

def differs_in_how(how, where, ex):
    return ex in (RuntimeError, KeyboardInterrupt, CancelBatchException, CancelFitException) if how=='learner' else ex is RuntimeError

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how,where,ex', cross(['learner','fit','two','class'], ['model','loss','data'], exceptions, differs=differs_in_how))
def test_model_loss_data(dls, where, ex, how):
    "How: the callback in the learner, in `fit` only, two of them, or given as a class"
    model,loss_func = Breaks(ex) if where=='model' else None, BreakingLoss() if where=='loss' else CrossEntropyLossFlat()
    loss_func.ex,BreakingLoss.count = ex.__name__,0
    cbs = dict(learner=MixUp(), fit=None, two=[MixUp(), CutMix()], **{'class':CutMixUp})[how]
    learn = learner(dls, cbs, model, loss_func=loss_func)
    if where=='data':
        old,n = dls.train.create_batch,iter(range(100))
        def create_batch(b):
            if next(n)==2: raise ex('on purpose')
            return old(b)
        dls.train.create_batch = create_batch
    try: e = end(learn, cbs=MixUp() if how=='fit' else None)
    finally:
        if where=='data': dls.train.create_batch = old
    if not issubclass(ex, tuple(cancels)): assert type(e) is ex
    assert not hasattr(learn, 'mix_up') or how in ('learner','two')
    good_as_new(learn, loss_func)

@pytest.mark.filterwarnings('ignore')
def test_removed_after_an_interrupt(dls):
    learn = learner(dls, MixUp()); loss_func = learn.loss_func
    end(learn, cbs=Raise('after_pred', KeyboardInterrupt, 1))
    learn.remove_cb(MixUp)
    good_as_new(learn, loss_func)

@pytest.mark.filterwarnings('ignore')
def test_preview_recipe(dls):
    "The documented way to look at a mixed batch by hand leaves nothing behind"
    learn = learner(dls, MixUp()); loss_func = learn.loss_func
    with learn:
        learn.epoch,learn.training = 0,True
        learn.dl = dls.train
        learn._split(dls.one_batch())
        learn('before_train'); learn('before_batch')
    assert learn.yb[0].shape==(12,10)
    good_as_new(learn, loss_func)

@pytest.mark.filterwarnings('ignore')
def test_loss_changed_by_another_callback(dls):
    "A loss that somebody else sets during training is theirs to keep"
    new = LabelSmoothingCrossEntropyFlat()
    class Change(Callback):
        def before_epoch(self):
            if self.epoch==1: self.learn.loss_func = new
    learn = learner(dls, MixUp())
    learn.fit(2, cbs=Change())
    is_same(learn.loss_func, new)
