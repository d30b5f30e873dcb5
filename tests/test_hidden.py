"""ManifoldMixUp: values against slow references that mix one sample after the other, hooks that are gone however a fit ends, models of
every kind, and a reason for whatever is refused."""
import importlib.util,pickle,warnings
import pytest, torch, torchvision, torch.utils.checkpoint
from digits import *
from copy import deepcopy
from house import root
from test_ends import Raise, cause, exceptions, once
from fastai.callback.core import _events
from fastai.callback.progress import ProgressCallback
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.vision.models.unet import DynamicUnet
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails, test_is as is_same
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]   # fastai's stars bring fastcore's functions, which pytest would collect

from fastmix.callback import *
from fastmix.hidden import *

quiet = pytest.mark.filterwarnings('ignore')
modes = pytest.mark.parametrize('mode', ['elem','pair','batch'])

def n_hooks(model): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in model.modules())

def loaders(*batches):
    "`DataLoaders` of batches that are given"
    class Given:
        def __iter__(self): return iter(batches)
        def __len__(self): return len(batches)
    return DataLoaders(Given(), Given())

def learner(dls, model, cbs=None, loss_func=None, **kw):
    learn = Learner(dls, model, loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs, **kw)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

class Grab(Callback):
    "Keeps what is seen right after our handler in each training batch"
    order,run_valid = 1,False
    def __init__(self, cb): self.cb,self.seen = cb,[]
    def before_batch(self): self.hooks = n_hooks(self.model)
    def after_pred(self):
        cb,learn = self.cb,self.learn
        self.seen.append(SimpleNamespace(layer=cb.layer, lam=cb.lam, idx=cb.idx, xb=learn.xb, yb=learn.yb, pred=learn.pred,
                                         during=self.hooks, after=n_hooks(learn.model)))

def one_batch(model, xb, yb, cb, loss_func=None, cbs=()):
    "What `Grab` sees in a fit of one batch that changes no weights; the model is in training mode"
    g = Grab(cb)
    learner(loaders((*xb, yb)), model, [cb, g, *cbs], loss_func, opt_func=SGD).fit(1, lr=0.)
    model.train()
    return g.seen[0]

def mixed(x, s):
    "Each row with its partner, one after the other"
    return torch.stack([(s.lam[i]*x[i].double() + (1-s.lam[i])*x[s.idx[i]].double()) for i in range(len(x))]).to(x.dtype)

def mlp(): return nn.Sequential(nn.Linear(6,8), nn.Tanh(), nn.Linear(8,8), nn.Tanh(), nn.Linear(8,3))

# --- values

dtypes = {torch.float32:1e-5, torch.float64:1e-6, torch.bfloat16:.05, torch.float16:5e-3}

@quiet
@modes
@pytest.mark.parametrize('dtype', dtypes, ids=str)
@pytest.mark.parametrize('n', [2,5,8])
@pytest.mark.parametrize('layers', ['input', '0', '1', '2:input', ['0','1'], 1])
def test_values(mode, dtype, n, layers):
    "The prediction is what the rest of the model makes of mixed activations, and the targets are mixed alike"
    model,x,y = mlp().to(dtype),torch.randn(n,6).to(dtype),torch.randint(0,3,(n,))
    s = one_batch(model, [x], y, ManifoldMixUp(layers=layers, mode=mode, n_classes=3), loss_func=lambda p,y: CrossEntropyLossFlat()(p.float(), y))
    at = {'input':0, '0':1, '1':2, '2:input':2, '3':4}[s.layer]
    want = model[at:](mixed(model[:at](x), s))
    close(s.pred.float(), want.float(), dtypes[dtype]*want.abs().max().item()+1e-6)
    hot = F.one_hot(y, 3)
    close(s.yb[0], torch.stack([s.lam[i]*hot[i]+(1-s.lam[i])*hot[s.idx[i]] for i in range(n)]), 1e-5)
    assert (s.lam<1).sum() >= n-1 and (s.lam>=.5).all()
    if at: eq(s.xb[0], x)

def test_no_mixing_is_plain_training():
    "With alpha 0 or prob 0 weights and statistics are those of a training without us, though the model was looked into"
    def state(cb):
        set_seed(3)
        learn = learner(digit_dls(96), net(), cb)
        learn.fit(2)
        return learn.model.state_dict()
    want = state(None)
    for cb in (ManifoldMixUp(prob=0.), ManifoldMixUp(0.)):
        for k,v in state(cb).items(): eq(v, want[k])

@quiet
@pytest.mark.parametrize('frozen', [False,True])
def test_gradients(frozen):
    "Through both partners, with the layers before frozen or not"
    model,x,y = mlp(),torch.randn(7,6),torch.randint(0,3,(7,))
    if frozen:
        for p in model[0].parameters(): p.requires_grad_(False)
    class Grads(Callback):
        def before_step(self): self.grads = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
    g,cb = Grads(),ManifoldMixUp(layers='1', n_classes=3)
    s = one_batch(model, [x], y, cb, cbs=[g])
    loss = -(s.yb[0]*F.log_softmax(model[2:](mixed(model[:2](x), s)), 1)).sum(1).mean()
    want = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    got = [o for o in g.grads if o is not None]
    eq(len(got), len(want))
    for a,b in zip(got, want): close(a, b, 1e-5)

@quiet
@modes
@pytest.mark.parametrize('cat,cont', [(2,4),(0,4),(2,0)])
def test_table(mode, cat, cont):
    "Continuous columns and embeddings mixed by one plan"
    model = TabularModel([(5,3),(7,2)][:cat], cont, 3, [8], bn_cont=False, use_bn=False)
    xb,y = (torch.randint(1,5,(6,cat)),torch.randn(6,cont)),torch.randint(0,3,(6,))
    s = one_batch(model, xb, y, ManifoldMixUp(layers='input', mode=mode, n_classes=3))
    emb = [mixed(e(xb[0][:,i]), s) for i,e in enumerate(model.embeds)]
    close(s.pred, model.layers(torch.cat([*emb, mixed(xb[1], s)], 1)), 1e-5)
    eq(s.layer, 'input')
    eq(s.during, cat); eq(s.after, 0)

small = dict(emb_sz=6, n_hid=8, n_layers=1, output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=1e-9)  # fastai's WeightDropout breaks at 0
def classifier(bptt=20): return get_text_classifier(AWD_LSTM, 30, 3, seq_len=bptt, config={**awd_lstm_clas_config, **small}, ps=[0.], lin_ftrs=[5])

def texts(bptt, lens=(24,23,15,14,6)):
    "Texts of random tokens, padded by fastai, all with a token where the last chunk begins: fastai takes the wrong rows otherwise"
    return pad_input_chunk([(TensorText(torch.randint(2,30,(k,))),) for k in lens], pad_idx=1, seq_len=bptt)

def padded(bptt): return torch.stack([t[0].as_subclass(Tensor) for t in texts(bptt)])

@quiet
@modes
def test_pooled_text(mode):
    model,x,y = classifier(8),padded(8),torch.randint(0,3,(5,))
    s = one_batch(model, [x], y, ManifoldMixUp(mode=mode, n_classes=3), loss_func=lambda p,y: CrossEntropyLossFlat()(p[0], y))
    eq(s.layer, '1.layers:input')
    from fastai.text.models.core import masked_concat_pool
    close(s.pred[0], model[1].layers(mixed(masked_concat_pool(*model[0](x), 8), s)), 1e-5)

@quiet
@modes
@pytest.mark.parametrize('bptt', [8,30])
@pytest.mark.parametrize('layers', ['input','0.module.encoder_dp'])
def test_text_behind_the_embedding(mode, bptt, layers):
    "Each text alone, its own chunks only, against the whole batch; padding counts as zero"
    from fastai.text.models.core import masked_concat_pool
    model,x,y = classifier(bptt),padded(bptt),torch.randint(0,3,(5,))
    s = one_batch(model, [x], y, ManifoldMixUp(layers=layers, mode=mode, n_classes=3), loss_func=lambda p,y: CrossEntropyLossFlat()(p[0], y))
    awd,pools = model[0].module,[]
    for i in range(5):
        own,other,lam = x[i],x[s.idx[i]],s.lam[i]
        first = next(k for k in range(0, len(own), bptt) if own[k]!=1)          # chunks before hold padding only
        own,other = own[first:],other[first:]
        if lam==1: other = torch.ones_like(other)
        emb = torch.stack([lam*(a!=1)*awd.encoder.weight[a] + (1-lam)*(b!=1)*awd.encoder.weight[b] if (a!=1 or b!=1) else awd.encoder.weight[1]
                           for a,b in zip(own, other)])
        awd.reset()
        out = awd(emb[None], from_embeds=True)
        pools.append(masked_concat_pool(out, ((own==1)&(other==1))[None], bptt))
    close(s.pred[0], model[1].layers(torch.cat(pools)), 1e-4)
    assert (s.xb[0]!=1).sum()>(x!=1).sum()

class Masked(nn.Module):
    "A model with padding of its own: the mean of the tokens' embeddings"
    def __init__(self): super().__init__(); self.emb,self.head = nn.Embedding(30, 6, padding_idx=0),nn.Linear(6,3)
    def forward(self, x):
        m = (x!=0)[...,None]
        return self.head((self.emb(x)*m).sum(1)/m.sum(1))

@quiet
@modes
def test_padding_of_any_model(mode):
    model,x,y = Masked(),torch.tensor([[3,4,5,6,7],[8,9,0,0,0],[2,0,0,0,0],[5,6,7,0,0]]),torch.randint(0,3,(4,))
    eq(find_layers(model, x), ['input'])
    s = one_batch(model, [x], y, ManifoldMixUp(mode=mode, n_classes=3))
    rows = []
    for i in range(4):
        own,other,lam = x[i],x[s.idx[i]] if s.lam[i]<1 else torch.zeros(5).long(),s.lam[i]
        e = sum(lam*(a!=0)*model.emb.weight[a] + (1-lam)*(b!=0)*model.emb.weight[b] for a,b in zip(own, other))
        rows.append(e/((own!=0)|(other!=0)).sum())
    close(s.pred, model.head(torch.stack(rows)), 1e-5)

class Two(nn.Module):
    "Two pictures, one encoder; or two encoders"
    def __init__(self, shared):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6,5), nn.Tanh())
        self.b = self.a if shared else nn.Sequential(nn.Linear(6,5), nn.Tanh())
        self.head = nn.Linear(10,3)
    def forward(self, x, y): return self.head(torch.cat([self.a(x), self.b(y)], 1))

@quiet
@pytest.mark.parametrize('shared,layers', [(True,'a.1'), (False,[('a','b.1')]), (False,'input'), (True,None)])
def test_two_inputs(shared, layers):
    model,xb,y = Two(shared),(torch.randn(5,6),torch.randn(5,6)),torch.randint(0,3,(5,))
    s = one_batch(model, xb, y, ManifoldMixUp(layers=layers, n_classes=3))
    if s.layer=='input': want = model(*(mixed(x, s) for x in xb))
    else: want = model.head(mixed(torch.cat([model.a(xb[0]), model.b(xb[1])], 1), s))
    close(s.pred, want, 1e-5)

@quiet
def test_language_model():
    "States at each word are mixed before the decoder, and the loss at each word"
    model,x = get_language_model(AWD_LSTM, 30, config={**awd_lstm_lm_config, **small}),torch.randint(2,30,(4,7))
    eq(find_layers(model, x), ['1:input'])
    class First(Callback):
        order = -5
        def after_pred(self): self.learn.pred = self.pred[0]
    s = one_batch(model, [x], torch.randint(2,30,(4,7)), ManifoldMixUp(), cbs=[First()])
    model.reset()
    close(s.pred, model[1](mixed(model[0](x), s))[0], 1e-5)

# --- which layers

def resnet(): return torchvision.models.resnet18(num_classes=3)
chosen = dict(
    resnet18=(resnet, ['input','relu','layer1','layer2']),
    vision_learner=(lambda: nn.Sequential(create_body(resnet(), pretrained=False), create_head(512, 3)), ['input','0.2','0.4','0.5']),
    xresnet18=(lambda: xresnet18(n_out=3), ['input','2','4','5']),
    convnext=(lambda: torchvision.models.convnext_tiny(num_classes=3), ['input','features.1','features.3']),
    swin=(lambda: torchvision.models.swin_t(num_classes=3), ['input','features.1','features.3']),
    mobilenet=(lambda: torchvision.models.mobilenet_v3_small(num_classes=3), ['input','features.0','features.1','features.3']),
    vit=(lambda: torchvision.models.VisionTransformer(64, 16, 8, 2, 48, 96, num_classes=3),
         ['input','encoder.layers.encoder_layer_1','encoder.layers.encoder_layer_3']),
    unet=(lambda: DynamicUnet(create_body(resnet(), pretrained=False), 2, (64,64)), ['input']))

@quiet
@pytest.mark.parametrize('name', chosen)
def test_find_layers(name):
    make,want = chosen[name]
    model = make()
    training = [m.training for m in model.modules()]
    before = {k:v.clone() for k,v in model.state_dict().items()}
    eq(find_layers(model, torch.randn(3,3,64,64)), want)
    eq(n_hooks(model), 4 if name=='unet' else 0)             # the U-Net's own
    eq([m.training for m in model.modules()], training)
    for k,v in model.state_dict().items(): eq(v, before[k])
    assert all(p.grad is None for p in model.parameters())

@quiet
@pytest.mark.parametrize('name,want', [('resnet18',['input','act1','layer1','layer2']), ('convnext_atto',['input','stages.0','stages.1']),
                                       ('vit_tiny_patch16_224',['input','blocks.2','blocks.5'])])
def test_find_layers_timm(name, want):
    timm = pytest.importorskip('timm')
    kw = dict(img_size=64) if 'vit' in name else {}
    eq(find_layers(timm.create_model(name, **kw), torch.randn(2,3,64,64)), want)

class Transformer(nn.Module):
    def __init__(self, n=8):
        super().__init__()
        self.words,self.places = nn.Embedding(30,8),nn.Embedding(16,8)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8,2,16,batch_first=True), n, enable_nested_tensor=False)
        self.head = nn.Linear(8,3)
    def forward(self, x): return self.head(self.body(self.words(x) + self.places(torch.arange(x.shape[1], device=x.device)[None])).mean(1))

def test_other_models():
    x_cat,x_cont,ids = torch.randint(1,4,(4,2)),torch.randn(4,6),torch.randint(2,30,(4,10))
    eq(find_layers(TabularModel([(5,3),(7,4)], 6, 2, [20,10]), x_cat, x_cont), ['input','layers.0','layers.1'])
    eq(find_layers(mlp(), torch.randn(4,6)), ['input','3'])
    eq(find_layers(Transformer(), ids), ['input','body.layers.1','body.layers.3'])
    for nd,conv,pool in ((1,nn.Conv1d,nn.AdaptiveAvgPool1d), (3,nn.Conv3d,nn.AdaptiveAvgPool3d)):
        model = nn.Sequential(conv(2,4,3,2), nn.ReLU(), conv(4,8,3,2), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(8,3))
        eq(find_layers(model, torch.randn(4,2,*[16]*nd)), ['input','1'])

@quiet
def test_one_at_random():
    "All the layers get their turn, about as often; the same seed gives the same turns"
    x,y = torch.randn(4,6),torch.randint(0,3,(4,))
    def turns(seed):
        set_seed(seed)
        cb = ManifoldMixUp(layers=['input','0','3'], n_classes=3)
        g = Grab(cb)
        learner(loaders(*[(x,y)]*300), mlp(), [cb, g]).fit(1)
        return [s.layer for s in g.seen]
    t = turns(0)
    for k in ('input','0','3'): assert 60 < t.count(k) < 140
    eq(t, turns(0))
    assert t!=turns(1)

@quiet
@pytest.mark.parametrize('how', ['module','position','negative','mixed'])
def test_ways_to_name(how):
    model = mlp()
    layers,want = dict(module=(model[1],{'1'}), position=([0,1],{'input','3'}), negative=(-1,{'3'}),
                       mixed=([model[0],'1:input','input'],{'0','1:input','input'}))[how]
    cb = ManifoldMixUp(layers=layers, n_classes=3)
    g = Grab(cb)
    learner(loaders(*[(torch.randn(4,6),torch.randint(0,3,(4,)))]*40), model, [cb, g]).fit(1)
    eq({s.layer for s in g.seen}, want)

# --- hooks

class Count(Callback):
    "There are hooks only from our `before_batch` to our `after_pred`, in training batches"
    def __init__(self, order): self.order,self.most = order,0
    def __call__(self, ev):
        if not self.learn or not hasattr(self.learn, 'model'): return
        n = n_hooks(self.learn.model)
        self.most = max(self.most, n)
        late = self.order>0
        allowed = self.learn.training and (ev=='before_batch' and late or ev=='after_pred' and not late or ev=='after_cancel_batch')
        if ev!='after_cancel_batch': assert n==0 or allowed, f'{n} hooks in {ev}'

@quiet
def test_hooks_only_during_the_forward():
    first,last = Count(-3),Count(3)
    learn = learner(digit_dls(96), net(), [ManifoldMixUp(layers='2'), first, last])
    learn.fit(2); learn.validate(); learn.get_preds()
    eq(n_hooks(learn.model), 0)
    eq((first.most,last.most), (1,1))

def usable(learn, loss_func):
    "No hooks, the user's loss, and a fit, predictions, pickles and copies as if nothing had happened"
    eq(n_hooks(learn.model), 0)
    assert not hasattr(learn, '_cleanups')
    is_same(learn.loss_func, loss_func)
    learn.fit(1)
    eq(n_hooks(learn.model), 0)
    preds,_ = learn.get_preds()
    learn.model.eval()
    with torch.no_grad(): want = torch.cat([learn.model(b[0]) for b in learn.dls.valid]).softmax(1)
    close(preds, want, 1e-5)
    for other in (pickle.loads(pickle.dumps(learn)), deepcopy(learn)):
        eq(n_hooks(other.model), 0)
        other.fit(1)

in_batch = 'before_batch after_pred after_loss after_batch after_cancel_batch'.split()
ends = [(ev,ex,pos) for ev in _events if ev!='after_create' for pos in ('before','after') if pos=='after' or ev in in_batch
        for ex in (CancelBatchException, CancelTrainException, CancelFitException, KeyboardInterrupt, RuntimeError)]

@pytest.mark.every(4)
@quiet
@pytest.mark.parametrize('ev,ex,position', ends, ids=lambda o: getattr(o, '__name__', str(o)))
def test_events(ev, ex, position):
    learn = learner(digit_dls(48, 12), net(), ManifoldMixUp(layers=['2','4']))
    loss_func,raiser = learn.loss_func,Raise(ev, ex, 1 if position=='after' else -1, 1 if once(ev) else 2)
    cbs = [raiser]
    if ev in cause: cbs.append(Raise(*cause[ev], -20))
    if 'cancel_batch' in ev or 'cancel_step' in ev or 'cancel_backward' in ev: raiser.count = 1
    try: learn.fit(2, cbs=cbs)
    except BaseException as e:
        if 'on purpose' not in str(e): raise
    assert raiser.count>=2, 'the exception was never raised'
    usable(learn, loss_func)

class Breaks(nn.Module):
    "Passes its input on, but raises when it is run for the third time in training"
    def __init__(self): super().__init__(); self.count,self.ex = 0,None
    def forward(self, x):
        self.count += self.training
        if self.training and self.count==3: raise self.ex('on purpose')
        return x

@quiet
@pytest.mark.parametrize('ex', exceptions, ids=lambda o: o.__name__)
@pytest.mark.parametrize('where', ['before the layer','behind the layer','loss'])
def test_model_and_loss(ex, where):
    b = Breaks()
    b.ex = ex
    body,head = net()[:3],net()[3:]
    model = nn.Sequential(*{'loss':(body,head), 'before the layer':(b,body,head), 'behind the layer':(body,b,head)}[where])
    if where=='loss':
        class Loss(CrossEntropyLossFlat):
            def __call__(self, *args, **kw): b(torch.zeros(1)); return super().__call__(*args, **kw)
        loss_func = Loss()
    else: loss_func = CrossEntropyLossFlat()
    learn = learner(digit_dls(96, 12), model, ManifoldMixUp(layers='1' if 'before' in where else '0'), loss_func)
    try: learn.fit(1)
    except BaseException as e:
        if 'on purpose' not in str(e): raise
    assert b.count>=3
    b.ex,b.count = None,10
    eq(n_hooks(model), 0)
    assert not hasattr(learn, '_cleanups')
    is_same(learn.loss_func, loss_func)
    learn.fit(1)

@quiet
def test_a_preview_leaves_no_hooks():
    "Events that are called by hand, outside of a fit, have nobody who would clear up"
    learn = learner(digit_dls(96), net(), ManifoldMixUp(layers='2'))
    with learn.no_bar():
        learn('before_fit'); learn('before_epoch'); learn('before_train')
        learn.dl = learn.dls.train
        b = learn.dls.one_batch()
        learn._split(b)
        learn('before_batch')
    eq(n_hooks(learn.model), 0)
    eq(learn.yb[0].shape, (len(b[0]),10))

@quiet
@pytest.mark.parametrize('layers', ['name','module'])
def test_export(layers, tmp_path):
    model = net()
    learn = learner(digit_dls(96, path=tmp_path), model, ManifoldMixUp(layers='2' if layers=='name' else model[2]))
    learn.fit(1)
    want = learn.predict(3)[2]
    learn.export('e.pkl')
    eq(load_learner(tmp_path/'e.pkl').predict(3)[2], want)
    twin = deepcopy(learn)
    twin.fit(1)
    eq(twin.manifold_mix_up.layer, '2')
    eq(n_hooks(twin.model), 0)

@quiet
def test_evaluation_is_untouched():
    cb,model,dls = ManifoldMixUp(layers='2'),net(),digit_dls(96)
    learn = learner(dls, model, cb)
    learn.fit(1)
    preds,targs = learn.get_preds()
    model.eval()
    with torch.no_grad(): want = torch.cat([model(b[0]) for b in dls.valid]).softmax(1)
    close(preds, want, 1e-6)
    close(learn.validate()[0], F.nll_loss(want.log(), targs).item(), 1e-4)
    learn.remove_cb(cb)
    learn.fit(1)

# --- with others

@quiet
def test_with_mixup():
    "One of the two in each batch, each about as often"
    a,b = ManifoldMixUp(layers='0', n_classes=3),MixUp(n_classes=3)
    seen = []
    class Who(Callback):
        order,run_valid = 1,False
        def after_pred(self):
            assert (a.plan is None) != (b.plan is None)
            seen.append('hidden' if a.plan is not None else 'input')
            eq(a.layer, '0' if a.plan is not None else None)
            assert isinstance(self.learn.yb[0], Tensor) and self.learn.yb[0].shape==(4,3)
    learner(loaders(*[(torch.randn(4,6),torch.randint(0,3,(4,)))]*200), mlp(), [a, b, Who()]).fit(1)
    assert 70 < seen.count('hidden') < 130

@quiet
def test_two_of_them():
    learn = learner(digit_dls(96), net(), [ManifoldMixUp(layers='2'), ManifoldMixUp(.4, layers='4')])
    learn.fit(2)
    eq(n_hooks(learn.model), 0)

@quiet
def test_schedule_smoothing_prob():
    cb = ManifoldMixUp(layers='0', prob=.5, label_smoothing=.1, schedule=lambda p: 1-p, n_classes=3)
    g = Grab(cb)
    learner(loaders(*[(torch.randn(8,6),torch.randint(0,3,(8,)))]*40), mlp(), [cb, g]).fit(1)
    share = [(s.lam<1).float().mean().item() for s in g.seen]
    assert .25 < np.mean(share[:10]) < .75 and np.mean(share[-10:])<.2 and np.mean(share[:10])>np.mean(share[-10:])
    for s in g.seen: close(s.yb[0].sum(1), torch.ones(8), 1e-5)

@quiet
def test_autocast():
    class Auto(Callback):
        order = 10
        def before_batch(self): self.ctx = torch.autocast('cpu', torch.bfloat16); self.ctx.__enter__()
        def after_loss(self): self.ctx.__exit__(None, None, None)
    loss_func = lambda p,y: CrossEntropyLossFlat()(p.float(), y)
    learn = learner(digit_dls(96), net(), [ManifoldMixUp(layers=['input','0','2']), Auto()], loss_func)
    learn.fit(1)
    assert learn.recorder.values[-1][0] < 3

@quiet
@pytest.mark.parametrize('n', [1,2,3])
def test_small_batches(n):
    learn = learner(loaders((torch.randn(n,6), torch.randint(0,3,(n,)))), mlp(), ManifoldMixUp(layers=['input','1'], n_classes=3))
    learn.fit(3)

@quiet
def test_distributed(tmp_path):
    "Names are those of the user's model, without the wrapper's prefix"
    import torch.distributed as dist
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = mlp()
        dls = loaders(*[(torch.randn(4,6),torch.randint(0,3,(4,)))]*3)
        learn = learner(dls, nn.parallel.DistributedDataParallel(model), ManifoldMixUp(layers='1', n_classes=3))
        learn.fit(1)
        eq(learn.manifold_mix_up.layer, '1'); eq(n_hooks(model), 0)
    finally: dist.destroy_process_group()

# --- refused, in a sentence

class Loop(nn.Module):
    def __init__(self): super().__init__(); self.step,self.head = nn.Linear(6,6),nn.Linear(6,3)
    def forward(self, x):
        for _ in range(3): x = self.step(x)
        return self.head(x)

class Flat(nn.Module):
    "Works on all the words of a batch at once"
    def __init__(self): super().__init__(); self.words,self.head = nn.Linear(6,6),nn.Linear(6,3)
    def forward(self, x): return self.head(self.words(x.reshape(-1,6)).reshape(len(x),-1,6).mean(1))

class Numbers(nn.Module):
    "Whole numbers, but no embedding"
    def __init__(self): super().__init__(); self.head = nn.Linear(5,3)
    def forward(self, x): return self.head(F.one_hot(x.long(), 5).float())

class Pair(nn.Module):
    def __init__(self): super().__init__(); self.emb,self.head = nn.Embedding(9,4,padding_idx=0),nn.Linear(4,3)
    def forward(self, a, b): return self.head(self.emb(a).mean(1)+self.emb(b).mean(1))

class Fails(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(6,3)
    def forward(self, x): return self.a(x) if len(x)==4 else 1/0

class Eager(nn.Module):
    def __init__(self): super().__init__(); self.a,self.skip,self.n = nn.Linear(6,6),nn.Linear(6,3),0
    def forward(self, x):
        self.n += 1
        return self.skip(self.a(x) if self.n<2 else x)

class Checkpointed(nn.Module):
    def __init__(self, how): super().__init__(); self.a,self.head,self.how = nn.Linear(6,6),nn.Linear(6,3),how
    def forward(self, x): return self.head(torch.utils.checkpoint.checkpoint(self.a, x+self.head.bias[0], use_reentrant=self.how))

class Scripted(nn.Module):
    def __init__(self): super().__init__(); self.a,self.head = torch.jit.script(nn.Sequential(nn.Linear(6,6), nn.ReLU())),nn.Linear(6,3)
    def forward(self, x): return self.head(self.a(x))

def compiled(m): m.compile(backend='eager'); return m
x,ids = torch.randn(4,6),torch.randint(2,9,(4,7))
refused = {
    'unknown name': (mlp, (x,), 'lin', "layers='lin': Sequential has no such layer"),
    'nearly a name': (lambda: Two(False), (x,x), 'heat', "did you mean 'head'"),
    'unknown side': (mlp, (x,), '1:output', 'no such layer'),
    'another model': (mlp, (x,), nn.Linear(6,6), "layers='Linear': this module is not a part of the model"),
    'position': (mlp, (x,), 7, 'layers=7: positions are those of find_layers, 0 to 1: input, 3'),
    'does not run': (lambda: nn.ModuleDict(dict(a=mlp(), b=nn.Linear(2,2))), (x,), 'b', 'does not run'),
    'tuple': (lambda: classifier(), (ids,), '0', "gives tuple, and only one tensor of floats can be mixed"),
    'rows': (Flat, (torch.randn(4,3,6),), 'words', 'gives shape (6, 6) for 2 samples'),
    'tokens': (Pair, (ids,ids), 'emb:input', "is given torch.int64"),
    'loop': (Loop, (x,), 'step', "'step' works on what 'step' gave, so samples would be mixed twice"),
    'one after the other': (mlp, (x,), [('0','3')], "'3' works on what '0' gave"),
    'input and more': (mlp, (x,), [('input','3')], "'3' works on what 'input' gave"),
    'whole numbers': (Numbers, (torch.randint(0,5,(4,)),), 'input', 'no embedding to mix them behind'),
    'bytes': (Numbers, (torch.randint(0,5,(4,3)).byte(),), 'input', 'IntToFloatTensor'),
    'bytes that do not run': (net, (torch.zeros(4,1,8,8).byte(),), '2', 'IntToFloatTensor'),
    'nothing found': (lambda: nn.Sequential(Numbers()), (torch.randint(0,5,(4,)),), None, 'found no layer of Sequential'),
    'two texts': (Pair, (ids,ids), 'input', 'padding is respected in one input of tokens (n,length), but the model has 2'),
    'parallel': (lambda: nn.DataParallel(mlp()), (x,), '0', 'use DistributedDataParallel'),
    'compiled': (lambda: compiled(mlp()), (x,), '0', 'compile it after training'),
    'compiled by wrapper': (lambda: torch.compile(mlp(), backend='eager'), (x,), None, 'compile it after training'),
    'compiled in part': (lambda: nn.Sequential(compiled(nn.Linear(6,6)), nn.Linear(6,3)), (x,), '0', 'compile it after training'),
    'scripted': (Scripted, (x,), 'a', 'runs as compiled code'),
    'checkpointed': (lambda: Checkpointed(True), (x,), 'a', 'as in gradient checkpointing'),
    'checkpointed anew': (lambda: Checkpointed(False), (x,), 'a', 'A different number of tensors was saved'),
    'needs its batch': (Fails, (x,), 'a', 'does not run on two samples in evaluation mode'),
    'left out': (Eager, (x,), 'a', "'a' did not run in this batch, so its labels would be mixed and its samples not"),
    'not a tensor': (mlp, ([1,2],), '0', 'only tensors can be mixed')}

@quiet
@pytest.mark.parametrize('name', refused)
def test_refused(name):
    make,xb,layers,why = refused[name]
    model = make()
    if isinstance(model, nn.ModuleDict): model.forward = lambda x: model['a'](x)
    learn = learner(loaders((*xb, torch.randint(0,3,(4,)))), model, ManifoldMixUp(layers=layers, n_classes=3))
    with pytest.raises((ValueError,TypeError,RuntimeError)) as e: learn.fit(1)
    assert why in str(e.value)
    eq(n_hooks(model), 0)

@pytest.mark.parametrize('layers', [[], True, 1.5, [None], [()], [['a', 2.]], {}], ids=str)
def test_bad_layers(layers):
    with pytest.raises(ValueError, match='^layers='): ManifoldMixUp(layers=layers)

@pytest.mark.parametrize('alpha', [-1, float('nan'), '2', None])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match='^alpha='): ManifoldMixUp(alpha)

@quiet
def test_compiled_models_can_mix_their_input():
    model = compiled(mlp())
    y = torch.randint(0,3,(4,))
    s = one_batch(model, [x], y, ManifoldMixUp(layers='input', n_classes=3))
    close(s.pred, model(mixed(x, s)), 1e-5)

@pytest.mark.parametrize('layers,warned', [('layer1.0.conv1',True), ('layer1.0',False), ('layer2',False), ('fc',False)])
def test_warns_of_a_way_around(layers, warned):
    dls = loaders((torch.randn(2,3,32,32), torch.randint(0,3,(2,))))
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learner(dls, resnet(), ManifoldMixUp(layers=layers, n_classes=3)).fit(1)
    eq(any('a part of the signal goes around it' in str(o.message) for o in w), warned)

# --- real data

@pytest.fixture(scope='module')
def kinds():
    "`bench/kinds.py`, as a module"
    spec = importlib.util.spec_from_file_location('bench_kinds', root/'bench'/'kinds.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

@quiet
@pytest.mark.parametrize('kind,epochs,enough', [('wine',20,.85), ('cancer',8,.9), ('text',6,.55)])
def test_learns_kinds(kinds, kind, epochs, enough):
    "By chance a third of the wines would be right, and a sixth of the docstrings"
    make,_,lr = kinds.KINDS[kind]
    set_seed(0)
    learn = make(0, L(ManifoldMixUp()))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    assert learn.final_record[-1] > enough
    eq(n_hooks(learn.model), 0)

@quiet
def test_learns_numbers(kinds):
    assert kinds.run('diabetes', 0, ManifoldMixUp())[0] < .9      # 1 would be to predict the mean
