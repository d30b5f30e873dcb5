"Other people's training loops, with the real packages where they are installed: Lightning, the Trainer of transformers, accelerate; batches of torchvision and of loaders that work on the device."
import inspect, warnings
import numpy as np, pytest, torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from fastmix.blend import blend
from fastmix.draw import draw_cutmix, draw_mixup, make_rng
from fastmix.forward import mix_hidden
from fastmix.functional import Mixup, MixCollate
from fastmix.plan import Plan
from fastmix.target import mix_soft_target

C = 3
def net(): return nn.Sequential(nn.Conv2d(1,4,3,2,1), nn.ReLU(), nn.Conv2d(4,8,3,2,1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,C))
def pictures(n=24):
    y = torch.arange(n)%C
    return TensorDataset(torch.rand(n,1,8,8)+y.view(-1,1,1,1), y)
def n_hooks(m): return sum(len(o._forward_hooks)+len(o._forward_pre_hooks) for o in m.modules())
def plan_of(lam): lam = np.float32(lam); return Plan(len(lam), lam, lam, partner=1)

# --- mix_hidden

class Net(nn.Module):
    "Two blocks with a note of what went into the second, and what came out"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Sequential(nn.Linear(5,6), nn.Tanh()),nn.Linear(6,C)
    def forward(self, x, *, scale=1.):
        self.h = self.a(x)
        return self.b(self.h)*scale

def test_hidden_is_blend():
    model,x,plan = Net(),torch.rand(4,5),plan_of([.9,.7,.6,1.])
    clean = model.a(x)
    with mix_hidden(model, plan, 'a') as mixed: out = model(x, scale=2.)
    torch.testing.assert_close(out, model.b(blend(clean, plan))*2)
    assert mixed.layer=='a' and n_hooks(model)==0
    def pred(layers):
        with mix_hidden(model, plan, layers): return model(x)
    for layers in ('b:input', [('a',)], model.a): torch.testing.assert_close(pred(layers), model.b(blend(clean, plan)))
    torch.testing.assert_close(pred('input'), model.b(model.a(blend(x, plan))))
    assert torch.allclose(model(x), model.b(clean))

def test_hidden_gradients():
    "Gradients are those of the mixed layer, by hand"
    model,x,plan = Net(),torch.rand(4,5),plan_of([.9,.7,.6,.5])
    with mix_hidden(model, plan, 'a'): model(x).square().sum().backward()
    g = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    h = model.a(x)
    w = torch.tensor(plan.lam)[:,None]
    model.b(w*h+(1-w)*h.roll(-1, 0)).square().sum().backward()
    for a,p in zip(g, model.parameters()): torch.testing.assert_close(a, p.grad)

def test_hidden_drawn_layers_repeat():
    model,x,plan = Net(),torch.rand(4,5),plan_of([.9,.7,.6,.5])
    def layers():
        torch.manual_seed(0)
        out = []
        for _ in range(12):
            with mix_hidden(model, plan, ['input','a']) as m: model(x)
            out.append(m.layer)
        return out
    assert layers()==layers() and set(layers())=={'input','a'}

def test_hidden_comes_off():
    model,x,plan = Net(),torch.rand(4,5),plan_of([.9,.7,.6,.5])
    with pytest.raises(KeyboardInterrupt):
        with mix_hidden(model, plan, 'a'): model(x); raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match='ran twice'):
        with mix_hidden(model, plan, 'a'): model(x); model(x)
    with pytest.raises(RuntimeError, match='did not run in mix_hidden'):
        with mix_hidden(model, plan, 'a'): pass
    with pytest.raises(ValueError, match='5 samples but the plan was drawn for 4'):
        with mix_hidden(model, plan, 'a'): model(torch.rand(5,5))
    with pytest.raises(ValueError, match='gradient'), torch.no_grad():
        with mix_hidden(model, plan, 'a'): model(x)
    with pytest.raises(ValueError, match='boxes or a mask'):
        with mix_hidden(model, draw_cutmix(make_rng(0), 4, (8,8))): pass
    with pytest.raises(ValueError, match='layers=.*must be None'):
        with mix_hidden(model, plan, []): pass
    assert n_hooks(model)==0
    with mix_hidden(model, plan_of([1.]*4)) as m: assert torch.equal(model(x), model(x)) and m.layer is None     # nothing to mix

def test_hidden_leaves_no_trace():
    "Looking for the layers moves no statistics, draws no random numbers but one, and is done once"
    model = nn.Sequential(nn.Linear(5,6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6,C))
    x,plan,calls = torch.rand(4,5),plan_of([.9,.7,.6,.5]),[]
    model[0].register_forward_hook(lambda *a: calls.append(1))
    for k in (2,3):                      # two calls the first time, one the next
        with mix_hidden(model, plan, '0'): model(x)
        assert len(calls)==k
    assert model[1].num_batches_tracked==2
    torch.manual_seed(0)
    with mix_hidden(model, plan, '0'): a = model(x)
    torch.manual_seed(0)
    torch.empty((), dtype=torch.int64).random_()
    b = model[3](model[2](model[1](blend(model[0](x), plan))))
    torch.testing.assert_close(a, b)

# --- Lightning

def test_lightning():
    L = pytest.importorskip('lightning', reason='lightning is not installed: pip install fastmix[loops]')
    class Lit(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net,self.mixup,self.seen = net(),Mixup(mixup_alpha=.2, cutmix_alpha=1., num_classes=C),{'train':[],'valid':[]}
        def on_after_batch_transfer(self, batch, i): return self.mixup(*batch) if self.trainer.training else batch
        def training_step(self, batch, i):
            x,t = batch
            self.seen['train'].append(t)
            return F.cross_entropy(self.net(x), t)
        def validation_step(self, batch, i): self.seen['valid'].append(batch[1])
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), .1)
    def fit():
        L.seed_everything(1, verbose=False)
        lit,ds = Lit(),pictures()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            L.Trainer(max_epochs=2, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      num_sanity_val_steps=0).fit(lit, DataLoader(ds, 8, shuffle=True), DataLoader(ds, 8))
        return lit
    a,b = fit(),fit()
    assert all(t.shape==(8,C) for t in a.seen['train']) and len(a.seen['train'])==6 and all(t.ndim==1 for t in a.seen['valid'])
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))       # one seed, one run

# --- transformers

def trainer_of(transformers, tmp_path, cls, model, ds, **kw):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8, report_to=[], save_strategy='no', logging_strategy='no',
                                          disable_tqdm=True, use_cpu=True, remove_unused_columns=False, learning_rate=1e-2)
    return cls(model=model, args=args, train_dataset=ds, eval_dataset=ds, **kw)

class Dicts(Dataset):
    def __init__(self, **columns): self.columns = columns
    def __len__(self): return len(next(iter(self.columns.values())))
    def __getitem__(self, i): return {k:v[i] for k,v in self.columns.items()}

def test_transformers_pictures(tmp_path):
    "Pictures are mixed by the collator, in training only"
    tr = pytest.importorskip('transformers', reason='transformers is not installed: pip install fastmix[loops]')
    seen = []
    def loss(outputs, labels, **kw):
        seen.append(labels)
        return F.cross_entropy(outputs.logits, labels)
    class MixTrainer(tr.Trainer):
        def get_eval_dataloader(self, *args, **kw):
            mix,self.data_collator = self.data_collator,self.data_collator.collate
            try: return super().get_eval_dataloader(*args, **kw)
            finally: self.data_collator = mix
    model = tr.ViTForImageClassification(tr.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4, num_channels=1, num_labels=C))
    x,y = pictures().tensors
    mix = MixCollate(Mixup(mixup_alpha=.2, cutmix_alpha=1., num_classes=C), collate=tr.default_data_collator)
    t = trainer_of(tr, tmp_path, MixTrainer, model, Dicts(pixel_values=x, labels=y), data_collator=mix, compute_loss_func=loss)
    before = [p.detach().clone() for p in model.parameters()]
    t.train()
    assert len(seen)==4 and all(o.shape==(8,C) and o.is_floating_point() for o in seen)
    assert any(not torch.equal(a, b) for a,b in zip(before, model.parameters()))
    t.evaluate()
    assert all(o.ndim==1 for o in seen[4:]) and len(seen)>4

def bert(tr):
    return tr.BertForSequenceClassification(tr.BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=C, hidden_dropout_prob=0., attention_probs_dropout_prob=0.))

def texts(n=24):
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (n,10))
    for i in range(n): ids[i,3+i%8:] = 0
    return dict(input_ids=ids, attention_mask=(ids!=0).long(), labels=torch.arange(n)%C)

@pytest.mark.parametrize('layers', [None,'input'])
def test_transformers_texts(tmp_path, layers):
    "Texts are mixed behind the embedding, or later, in the loss of the Trainer"
    tr = pytest.importorskip('transformers', reason='transformers is not installed: pip install fastmix[loops]')
    at = []
    class MixTrainer(tr.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            y = inputs.pop('labels')
            if not model.training: out,t = model(**inputs),y
            else:
                plan = draw_mixup(make_rng(), len(y), alpha=.4)
                with mix_hidden(model, plan, layers) as mixed: out = model(**inputs)
                t = mix_soft_target(y, plan, C)
                at.append(mixed.layer)
            loss = F.cross_entropy(out.logits, t)
            return (loss,out) if return_outputs else loss
    t = trainer_of(tr, tmp_path, MixTrainer, bert(tr), Dicts(**texts()))
    t.train()
    assert len(at)==4 and (set(at)=={'input'} or layers is None)
    assert 'eval_loss' in t.evaluate() and len(at)==4 and n_hooks(t.model)==0

def test_transformers_padding():
    "Mixed with a longer text, a text is as long as that: the padding of the attention mask is filled up"
    tr = pytest.importorskip('transformers', reason='transformers is not installed: pip install fastmix[loops]')
    model,seen = bert(tr),{}
    model.bert.encoder.register_forward_pre_hook(lambda m,a,k: seen.update(x=a[0] if a else k['hidden_states']), with_kwargs=True)
    b = texts(4)
    y = b.pop('labels')
    plan = plan_of([.75]*4)
    with mix_hidden(model, plan, 'input') as mixed: out = model(**b)
    assert mixed.layer=='input' and out.logits.shape==(4,C)
    with pytest.raises(ValueError, match="take 'labels' out"):
        with mix_hidden(model, plan, 'input'): model(**b, labels=y)
    # the slow way: the words' embeddings are mixed by hand, padding as zero
    emb = model.bert.embeddings
    w,real = emb.word_embeddings(b['input_ids']),(b['input_ids']!=0)
    partner,there = w.roll(-1, 0),real.roll(-1, 0)
    lam = .75
    share = torch.where(real, lam, 0.)[...,None],torch.where(there, 1-lam, 0.)[...,None]
    words = share[0]*w + share[1]*partner
    want = model(inputs_embeds=words, attention_mask=(real|there).long()).logits
    torch.testing.assert_close(out.logits, want, rtol=1e-4, atol=1e-5)

# --- accelerate

def test_accelerate():
    accelerate = pytest.importorskip('accelerate', reason='accelerate is not installed: pip install fastmix[distributed]')
    acc = accelerate.Accelerator(cpu=True)
    model = net()
    model,opt,dl = acc.prepare(model, torch.optim.SGD(model.parameters(), .1), DataLoader(pictures(), 8, collate_fn=MixCollate(Mixup(num_classes=C))))
    for x,t in dl:
        assert t.shape==(8,C)
        acc.backward(F.cross_entropy(model(x), t)); opt.step(); opt.zero_grad()
    for x,y in acc.prepare(DataLoader(pictures(), 8)):
        plan = draw_mixup(make_rng(), len(y), alpha=2.)
        with mix_hidden(model, plan): out = model(x)
        acc.backward(F.cross_entropy(out, mix_soft_target(y, plan, C))); opt.step(); opt.zero_grad()
    assert n_hooks(model)==0

# --- batches that look otherwise

def test_device_batches():
    "Loaders such as FFCV's give uint8 pictures in channels-last order on the device: refused with the remedy, and that works"
    x = torch.randint(0, 256, (8,3,16,16), dtype=torch.uint8).to(memory_format=torch.channels_last)
    y = torch.arange(8)%C
    mixup = Mixup(mixup_alpha=0., cutmix_alpha=1., num_classes=C)
    with pytest.raises(TypeError, match=r'uint8.*x\.float\(\)\.div\(255\)'): mixup(x, y)
    for dtype in (torch.float32,torch.float16):
        out,t = mixup(x.to(dtype).div(255), y)
        assert out.dtype==dtype and out.is_contiguous(memory_format=torch.channels_last) and t.shape==(8,C)

def test_torchvision_v2():
    "What `v2.CutMix` is used for: in the collate function, on its own types of tensors"
    tv = pytest.importorskip('torchvision')
    from torchvision.transforms import v2
    x,y = tv.tv_tensors.Image(torch.rand(8,3,16,16)),torch.arange(8)%C
    theirs = v2.CutMix(num_classes=C)(x, y)
    ours = Mixup(mixup_alpha=0., cutmix_alpha=1., label_smoothing=0., num_classes=C)(x, y)
    assert [o.shape for o in theirs]==[o.shape for o in ours] and type(ours[0]) is type(theirs[0])
    torch.testing.assert_close(ours[1].sum(1), torch.ones(8))
    batch = next(iter(DataLoader([(tv.tv_tensors.Image(torch.rand(3,16,16)),i%C) for i in range(8)], 8, collate_fn=MixCollate(Mixup(num_classes=C)))))
    assert batch[1].shape==(8,C)

def test_time_series_learners():
    "tsai's learner is fastai's, its batches are a subclass of tensors (n, variables, steps): spans are cut, the type stays"
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.torch_core import TensorBase
    import fastmix.all as fm
    class TSTensor(TensorBase): pass
    x,y = TSTensor(torch.rand(8,2,30)),TensorBase(torch.arange(8)%C)
    class Loader(list): n_inp = 1
    seen = []
    class Body(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Conv1d(2,C,3)
        def forward(self, x): return self.l(x).mean(-1)
    class Look(Callback):
        order,run_valid = fm.MixHandler.order+1,False
        def before_batch(self): seen.append((type(self.learn.x), torch.equal(self.learn.x, x)))
    for cb in (fm.MixUp(), fm.CutMix(), fm.ResizeMix(partner='other'), fm.FMix()):
        learn = Learner(DataLoaders(Loader([(x,y)]), Loader([(x,y)])), Body(), loss_func=nn.CrossEntropyLoss(), cbs=[cb,Look()])
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert set(seen)=={(TSTensor,False)}

def test_tsai():
    "Its own loaders, batches and network"
    pytest.importorskip('tsai', reason='tsai is not installed: pip install tsai')
    import fastmix.all as fm
    from fastai.callback.core import Callback
    from tsai.basics import TSClassification, TSDataLoaders, TSDatasets
    from tsai.data.core import TSTensor
    from tsai.learner import ts_learner
    from tsai.models.FCN import FCN
    y = np.arange(72)%C
    x = np.random.default_rng(0).normal(size=(72,2,40)).astype('float32')+y[:,None,None]
    dsets = TSDatasets(x, y, tfms=[None,TSClassification()], splits=(list(range(48)),list(range(48,72))))
    seen = []
    class Look(Callback):
        order,run_valid = fm.MixHandler.order+1,False
        def before_batch(self): seen.append((type(self.x), self.learn.yb[0].shape))
    for cb in (fm.MixUp(), fm.CutMix(), fm.CutMixUp(), fm.FMix()):
        learn = ts_learner(TSDataLoaders.from_dsets(dsets.train, dsets.valid, bs=[24,24], num_workers=0), FCN, cbs=[cb,Look()])
        before = {k:v.clone() for k,v in learn.model.state_dict().items()}
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
        assert np.isfinite(learn.final_record[1]) and any(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert set(seen)=={(TSTensor,torch.Size([24,C]))} and len(seen)==16
