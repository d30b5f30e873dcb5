"Batches of every make: dicts, other precisions, targets that are no tensors, points and boxes, and losses that turn NaN."
import pytest, torch, warnings
from digits import *
from torch.amp import autocast
from fastai.callback.progress import ProgressCallback
from fastai.vision.all import TensorBBox, TensorPoint
from fastmix.draw import make_rng
from fastmix.handler import MixHandler
from fastmix.loss import MixedLoss
from fastmix.manifold import ManifoldMixUp
from fastmix.methods import *

class Items(list): n_inp = 1
every = pytest.mark.parametrize('cb', [MixUp,CutMix,CutMixUp,ResizeMix,FMix,RecursiveMix,lambda **kw: ManifoldMixUp(layers='head', **kw)],
                                ids='mixup cutmix cutmixup resizemix fmix recursivemix manifold'.split())

class Watch(Callback):
    "What is there in the middle of each training batch, and what was there before"
    run_valid,order = False,1
    def __init__(self): self.seen = []
    def after_pred(self): self.seen.append((self.learn.xb, self.learn.yb))

def learner(items, model, cbs, loss_func=None, bs=8, **kw):
    dls = DataLoaders.from_dsets(items, items[:bs], bs=bs, num_workers=0, shuffle=False, device='cpu')
    learn = Learner(dls, model, loss_func or nn.CrossEntropyLoss(), cbs=cbs, **kw)
    learn.remove_cb(ProgressCallback); learn.logger = noop
    return learn

class FromDict(nn.Module):
    def __init__(self, key='pixel_values'): super().__init__(); self.key,self.head = key,nn.Linear(64,3)
    def forward(self, d): return self.head(d[self.key].flatten(1))

def pictures(n=24): return torch.rand(n, 1, 8, 8)

# --- dicts

@every
def test_a_dict_of_inputs(cb):
    "As Hugging Face's collate makes it: tensors in it are mixed, names stay, and the caller's dict is not written to"
    x = pictures()
    items = [({'pixel_values':o, 'name':f'{i}.jpg', 'depth':{'map':o*2}}, i%3) for i,o in enumerate(x)]
    class Keep(Watch):
        order = MixHandler.order-1
        def before_batch(self): self.seen.append((self.learn.xb[0], {k:v.clone() for k,v in self.learn.xb[0].items() if isinstance(v, Tensor)}))
        def after_pred(self): pass
    w,k = Watch(),Keep()
    learn = learner(items, FromDict(), [cb(), w, k])
    learn.fit(1)
    for i,((xb,yb),(own,copy)) in enumerate(zip(w.seen, k.seen)):
        if not i and cb is RecursiveMix: continue                      # has nothing to mix with yet
        d = xb[0]
        assert list(d)==['pixel_values','name','depth'] and d['name']==own['name'] and yb[0].shape==(8,3)
        torch.testing.assert_close(d['depth']['map'], 2*d['pixel_values'])
        assert torch.equal(own['pixel_values'], copy['pixel_values'])

def test_a_dict_is_mixed_as_its_tensors():
    x = pictures()
    def fit(items, model):
        set_seed(1)
        model.load_state_dict({'head.'+k:v for k,v in state.items()})
        learn = learner(items, model, CutMixUp())
        learn.fit(2)
        return torch.stack(learn.recorder.losses)
    class Plain(FromDict):
        def forward(self, x): return self.head(x.flatten(1))
    state = nn.Linear(64,3).state_dict()
    a = fit([({'pixel_values':o}, i%3) for i,o in enumerate(x)], FromDict())
    b = fit([(o, i%3) for i,o in enumerate(x)], Plain())
    assert torch.equal(a, b)

def test_whole_numbers_in_a_dict():
    "Refused by mixes of inputs; behind its embedding by ManifoldMixUp, where the attention mask follows"
    n,l = 24,6
    ids = torch.randint(1, 20, (n,l))
    for i in range(n): ids[i,2+i%5:] = 0
    items = [({'input_ids':o, 'attention_mask':(o!=0).long(), 'kind':torch.zeros(l).long()}, i%3) for i,o in enumerate(ids)]
    seen = []
    class Text(nn.Module):
        def __init__(self): super().__init__(); self.emb,self.kinds,self.head = nn.Embedding(20,8,padding_idx=0),nn.Embedding(2,8),nn.Linear(8,3)
        def forward(self, d):
            m = d['attention_mask'].unsqueeze(-1).float()
            if self.training: seen.append((d['input_ids'], d['attention_mask']))
            return self.head(((self.emb(d['input_ids'])+self.kinds(d['kind']))*m).sum(1)/m.sum(1))
    with pytest.raises(TypeError, match='ManifoldMixUp'): learner(items, Text(), MixUp()).fit(1)
    learn = learner(items, Text(), cb := ManifoldMixUp(layers='input'))
    learn.fit(1)
    for t,m in seen: assert torch.equal(m, (t!=0).long())
    t,plan = seen[-1][0],cb.plan
    own = ids[16:]!=0
    partner = plan.partners_of(own) & (torch.from_numpy(plan.lam)<1)[:,None]
    assert torch.equal(t!=0, own | partner)
    learner(items, Text(), ManifoldMixUp()).fit(1)                     # layers chosen for the model

def test_what_has_no_row_for_each_sample():
    "A list of pictures that were not collated, numbers of a whole batch: named, not guessed"
    x = pictures(8)
    class Loader:
        def __init__(self, b): self.b = b
        def __iter__(self): return iter([self.b]*2)
        def __len__(self): return 2
    for xb in ([o for o in x], {'pixel_values':x, 'size':torch.tensor([8.,8.])}, {'pixel_values':x, 'scale':torch.tensor(1.)}):
        learn = Learner(DataLoaders(Loader((xb, torch.arange(8)%3)), Loader((xb, torch.arange(8)%3))), FromDict(), nn.CrossEntropyLoss(), cbs=MixUp())
        learn.remove_cb(ProgressCallback); learn.logger = noop
        with pytest.raises(TypeError, match='in a batch of 8 samples: all inputs must be tensors'): learn.fit(1)

# --- precision, and the number of classes

class Cast(Callback):
    "Brings the batch into the model's precision, after us"
    order = 5
    def before_batch(self): self.learn.xb = tuple(o.to(next(self.learn.model.parameters()).dtype) for o in self.learn.xb)
class Amp(Callback):
    order = 10
    def before_fit(self): self.autocast = autocast('cpu', dtype=torch.bfloat16)
    def before_batch(self): self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.learn.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)

class Head(nn.Module):
    def __init__(self): super().__init__(); self.flat,self.head = nn.Flatten(),nn.Linear(64,3)
    def forward(self, x): return self.head(self.flat(x)).float()        # fastai's recorder wants that

@every
@pytest.mark.parametrize('how', ['cast','amp','model'])
@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16,torch.float64], ids=lambda o: str(o)[6:])
def test_classes_are_found_in_any_precision(cb, how, dtype):
    "Loaders without a `c`, and inputs in another precision than the model's, as a later callback or autocast brings together"
    if how=='amp' and dtype==torch.float64: pytest.skip('autocast leaves double alone')
    items = [(o.to(dtype), i%3) for i,o in enumerate(pictures())]
    model,w = Head(),Watch()
    if how=='model': model = model.to(dtype)
    cbs = [cb(), w] + dict(cast=[Cast()], amp=[Amp()], model=[])[how]
    learn = learner(items, model, cbs)
    learn.fit(1, 1e-3)
    assert all(yb[0].shape==(8,3) and torch.isfinite(yb[0]).all() for _,yb in w.seen[cb is RecursiveMix:])
    if how!='cast': assert all(xb[0].dtype==dtype for xb,_ in w.seen)

def test_the_model_is_asked_in_the_precision_of_the_step():
    "What a model does under autocast only: it is under autocast when it is asked"
    class Picky(Head):
        def forward(self, x):
            assert torch.is_autocast_enabled('cpu'), 'not the precision of a step'
            return super().forward(x)
    for cb in (MixUp(), ManifoldMixUp(layers='head')): learner([(o, i%3) for i,o in enumerate(pictures())], Picky(), [cb, Amp()]).fit(1)

# --- targets that cannot be mixed

@every
@pytest.mark.parametrize('extra', [lambda i: f'{i}.jpg', lambda i: {'id':i, 'name':str(i)}], ids=['names','dicts'])
def test_a_second_target_that_is_no_tensor(cb, extra):
    "Passes through untouched, for the loss too, and is said to be the sample's own, once a fit"
    items,got = Items((o, i%3, extra(i)) for i,o in enumerate(pictures())),[]
    def loss(p, y, info):
        got.append(info)
        return F.cross_entropy(p, y)
    learn = learner(items, Head(), cb(), loss)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.fit(2)
    assert sum("target 1 is a" in str(o.message) and "the sample's own" in str(o.message) for o in said)==1
    want = learn.dls.train.create_batch([items[i] for i in range(8)])[2]
    assert str(got[0])==str(want)
    assert learn.loss_func is loss

@every
def test_nothing_to_mix(cb):
    "The only target is no tensor: inputs must not be mixed alone"
    items = Items((o, f'{i}.jpg') for i,o in enumerate(pictures()))
    learn = learner(items, Head(), cb(), lambda p, y: p.mean())
    with pytest.raises(TypeError, match='target 0 is a .*nothing of it can be mixed'): learn.fit(1)

@every
@pytest.mark.parametrize('y', [TensorPoint(torch.rand(24,5,2)), TensorBBox(torch.rand(24,2,4)),
    torch.tensor([[3,4,20,30],[5,6,40,50]]*12), torch.tensor([[[3,4,20,30],[0,0,0,0]]]*24)], ids=['points','boxes','whole boxes','padded boxes'])
def test_points_and_boxes_are_refused(cb, y):
    items = Items((o, t) for o,t in zip(pictures(), y))
    kind = type(y)
    class Typed(Callback):
        order = -50
        def before_batch(self): self.learn.yb = (self.learn.yb[0].as_subclass(kind),)
    learn = learner(items, Head(), [cb(), Typed()], lambda p, y: (p.mean()-y.float().mean())**2)
    with pytest.raises((TypeError,ValueError), match='target 0.*can be neither averaged nor cut'): learn.fit(1)

# --- a loss that turns NaN

@pytest.mark.parametrize('cb', [MixUp,CutMix,lambda: ManifoldMixUp(layers='head')], ids=['mixup','cutmix','manifold'])
@pytest.mark.parametrize('value', [float('nan'),float('inf')])
def test_a_loss_that_turns_nan_is_said_once_an_epoch(cb, value):
    items = [(o, i%3) for i,o in enumerate(pictures(40))]
    class Spoil(Callback):
        run_valid = False
        def before_batch(self):
            if self.iter>=2 and self.epoch!=1: self.learn.xb = (self.x + value,)
    class NoStep(Callback):
        def before_backward(self): raise CancelBackwardException
        def before_step(self): raise CancelStepException
    Spoil.order = -50
    learn = learner(items, Head(), [cb(), Spoil(), NoStep()])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.fit(3)
    said = [str(o.message) for o in said if 'not finite' in str(o.message)]
    assert len(said)==2 and all(f'of 5 mixed batches in epoch {e} is not finite, first in batch 2' in s for s,e in zip(said, (0,2)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', 'You are shadowing|numpy.core')
        learner(items, Head(), [cb(), NoStep()]).fit(1)                # nothing to say

class NewLoss(Callback):
    "Another loss from the second epoch on, as those do who start with one and end with another"
    def __init__(self, loss_func): self.new = loss_func
    def before_epoch(self):
        if self.epoch: self.learn.loss_func = self.new

@every
def test_another_loss_in_mid_fit(cb):
    "What is mixed, validated and kept is the loss that the learner has now; if that smooths by itself, the callback leaves it to it"
    new,seen = nn.CrossEntropyLoss(label_smoothing=.3),[]
    class Look(Callback):
        order = 100
        def after_loss(self):
            if self.training and self.epoch and isinstance(self.y, Tensor) and self.y.ndim==2:
                seen.append((self.learn.loss.item(), F.cross_entropy(self.pred.detach(), self.y, label_smoothing=.3).item()))
                assert (self.y==0).any()
    model = FromDict('x')
    learn = learner([({'x':o}, i%3) for i,o in enumerate(pictures())], model, [cb(label_smoothing=.1), NewLoss(new), Look()])
    with pytest.warns(UserWarning, match='smooths labels by 0.3 already'): learn.fit(2)
    assert seen and all(abs(a-b)<1e-5 for a,b in seen)
    assert learn.loss_func is new

def test_lr_find_says_nothing_of_it():
    learn = learner([(o, i%3) for i,o in enumerate(pictures(40))], Head(), MixUp())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.lr_find(start_lr=1e10, end_lr=1e38, num_it=20, stop_div=False, show_plot=False, suggest_funcs=())
    assert not [o for o in said if 'not finite' in str(o.message)]

# --- what other callbacks are promised

@every
def test_lam_idx_plan(cb):
    "As the contract has them: (bs,) on the batch's device, in the middle of a batch and afterwards; None before the first"
    cb = cb(prob=.5)
    assert cb.plan is cb.lam is cb.idx is None
    class Look(Callback):
        run_valid,order = False,1
        def after_pred(self):
            n = len(self.y)
            assert cb.lam.shape==cb.idx.shape==(n,) and cb.lam.dtype==torch.float32 and cb.idx.dtype==torch.int64 and cb.plan.n==n
            assert ((cb.lam>=0) & (cb.lam<=1)).all() and torch.equal(cb.lam, torch.as_tensor(cb.plan.lam))
    learn = learner([(o, i%3) for i,o in enumerate(pictures(21))], Head(), [cb, Look()])
    learn.fit(1)
    assert len(cb.lam)==8 and cb.batch.inputs is None and cb.batch.targets==()
    assert not {'batch','_losses','_spec'} & cb.__getstate__().keys()

@every
def test_the_state_is_plain(cb):
    "A dict of whole numbers, as numpy has it, that `torch.load` reads with `weights_only`; what 0.1 wrote is read too"
    import io
    a = cb()
    learner([(o, i%3) for i,o in enumerate(pictures())], Head(), a).fit(1)
    state = a.state_dict()
    assert state==dict(rng=a.rng.bit_generator.state)
    f = io.BytesIO(); torch.save(state, f); f.seek(0)
    def text(s): return {k:text(v) for k,v in s.items()} if isinstance(s, dict) else str(s) if isinstance(s, int) and s>2**62 else s
    for s in (torch.load(f, weights_only=True), text(state)):
        b = cb(); b.load_state_dict(s)
        assert b.rng.bit_generator.state==state['rng']
    b = cb()
    with pytest.warns(UserWarning, match='written by fastmix 0.1, which drew plans ahead'): b.load_state_dict({**text(state), 'ahead':{'dealt':3}})
    assert b.rng.bit_generator.state==state['rng']
