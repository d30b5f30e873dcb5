"Partners chosen by class, Remix, and batches mixed in a data loader's workers."
from functools import partial
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
import fastmix.all as fm
from fastmix.classes import label_counts
from fastmix.functional import Mixup, MixCollate
from fastmix.partners import CLASS_PARTNERS, class_partners, close_partners, remix_lam

N,C = 16,3
labels = torch.tensor([0]*10+[1]*4+[2]*2)
by_class = dict(MixUp=fm.MixUp, CutMix=fm.CutMix, CutMixUp=fm.CutMixUp, ResizeMix=fm.ResizeMix, FMix=fm.FMix, ManifoldMixUp=fm.ManifoldMixUp)

def net(c=C): return nn.Sequential(nn.Conv2d(1,4,3,2,1), nn.ReLU(), nn.Conv2d(4,4,3,2,1), nn.ReLU(), nn.Conv2d(4,4,3,2,1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,c))

class Look(Callback):
    order,run_valid = fm.MixHandler.order+1,False
    def __init__(self): self.seen = []
    def after_pred(self):
        cb = next(o for o in self.learn.cbs if isinstance(o, fm.MixHandler))
        self.seen.append((cb.idx.clone(), cb.lam.clone(), self.learn.yb, self.learn.loss_func))

def run(cb, y=labels, n_batches=3, loss=None, ds=None, x=None, model=None):
    "What a few batches looked like"
    batches = [((torch.rand(len(y),1,16,16) if x is None else x), y)]*n_batches
    class Loader(list): n_inp,dataset = 1,ds
    look = Look()
    learn = Learner(DataLoaders(Loader(batches), Loader([])), model or net(), loss_func=loss or nn.CrossEntropyLoss(), cbs=[cb,look], lr=.01)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    learn.fit(1)
    return look.seen

# --- the draws

@pytest.mark.parametrize('kind', CLASS_PARTNERS)
def test_chances(kind):
    "Each partner is drawn as often as the definition says, and nobody is their own where others are possible"
    drawn = torch.stack([class_partners(labels, kind, s) for s in range(4000)])
    chance = torch.zeros(N, N)
    for i in range(N):
        for j in range(N):
            if i==j: continue
            same = labels[i]==labels[j]
            chance[i,j] = {'same':float(same), 'other':float(not same), 'rare':1/(labels==labels[j]).sum().item()}[kind]
    chance /= chance.sum(1, keepdim=True)
    seen = torch.stack([drawn[:,i].bincount(minlength=N) for i in range(N)])/len(drawn)
    assert (seen-chance).abs().max() < 5*(.25/4000)**.5
    assert (seen[chance==0]==0).all()

@pytest.mark.parametrize('kind', CLASS_PARTNERS)
def test_nobody_else(kind):
    alone = torch.arange(5) if kind=='same' else torch.zeros(5, dtype=torch.long)
    p = class_partners(alone, kind, 0)
    assert torch.equal(p, torch.arange(5)) if kind!='rare' else (p!=torch.arange(5)).all()
    assert class_partners(labels[:1], kind, 0).tolist()==[0]
    assert torch.equal(class_partners(labels[:,None], kind, 3), class_partners(labels, kind, 3))

def test_close_as_before():
    "Far from everyone the nearest is found; a missing number is nobody's partner and has none"
    y = torch.tensor([0.,1.,1e6,torch.nan,torch.inf])
    for s in range(20):
        p = close_partners(y, s, bandwidth=1.)
        assert p[:3].tolist() in ([1,0,1],[1,0,0]) and p[3:].tolist()==[3,4]

def slow_remix(lam, y, y1, counts, kappa, tau):
    "The formula of the paper, one sample at a time"
    out = []
    for l,a,b in zip(lam.tolist(), y.tolist(), y1.tolist()):
        ratio = max(counts[a],1)/max(counts[b],1)
        out.append(0. if ratio>=kappa and l<tau else 1. if ratio<=1/kappa and 1-l<tau else l)
    return torch.tensor(out)

@pytest.mark.parametrize('kappa,tau', [(3,.5), (2,.3), (1,.5), (10,1.)])
def test_remix_formula(kappa, tau):
    y,y1 = torch.randint(0, 4, (2,500))
    lam,counts = torch.rand(500),[400,133,40,0]
    out = remix_lam(lam, y, y1, torch.tensor(counts), kappa, tau)
    torch.testing.assert_close(out, slow_remix(lam, y, y1, counts, kappa, tau))
    assert 0<=out.min() and out.max()<=1

# --- the callbacks

@pytest.mark.parametrize('kind', CLASS_PARTNERS)
@pytest.mark.parametrize('name', by_class)
def test_every_method(name, kind):
    mode = 'elem' if name!='CutMix' else 'batch'
    for idx,lam,yb,_ in run(by_class[name](partner=kind, mode=mode)):
        rows = lam[:,None]*F.one_hot(labels, C) + (1-lam[:,None])*F.one_hot(labels[idx], C)
        torch.testing.assert_close(yb[0], rows, rtol=0, atol=1e-6)
        if kind=='same': assert (labels[idx]==labels).all() and torch.equal(yb[0]>.5, F.one_hot(labels, C)>0)
        if kind=='other': assert (labels[idx]!=labels).all()
        if kind=='rare': assert (idx!=torch.arange(N)).all()

def test_random_draws_are_as_they_were():
    "Without a choice by labels nothing more is drawn"
    def weights(**kw):
        torch.manual_seed(3)
        return torch.stack([l for _,l,*_ in run(fm.MixUp(1., **kw), x=torch.zeros(N,1,16,16), model=net())])
    assert torch.equal(weights(), weights(partner='random'))

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1.,2.,3.])), nn.MultiMarginLoss(), nn.BCEWithLogitsLoss()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('name', by_class)
def test_remix_in_training(name, loss):
    "Inputs are mixed as without it; the label's weight is that of the formula, and the loss follows it"
    counts,model = (100,30,5),net()
    def batches(**kw):
        torch.manual_seed(1)
        return run(by_class[name](mode='elem', **kw), loss=loss, x=torch.rand(N,1,16,16), model=net())
    plain,remixed = batches(),batches(imbalance=(3,.5), class_counts=counts)
    changed = 0
    for (idx,lam,*_),(idx1,lam1,yb,_) in zip(plain, remixed):
        assert torch.equal(idx, idx1)
        want = slow_remix(lam, labels, labels[idx], counts, 3, .5)
        torch.testing.assert_close(lam1, want)
        torch.testing.assert_close(yb[0], lam1[:,None]*F.one_hot(labels, C) + (1-lam1[:,None])*F.one_hot(labels[idx], C), rtol=0, atol=1e-6)
        changed += (lam1!=lam).sum()
    assert changed

def test_remix_leaves_inputs():
    "A row of numbers beside a picture keeps the weight that was drawn"
    cb = fm.CutMix(mode='elem', imbalance=(1,1.), class_counts=(9,5,1))
    class Two(list): n_inp = 2
    x,r = torch.rand(N,1,8,8),torch.rand(N,4)
    seen = []
    class Keep(Callback):
        order = fm.MixHandler.order+1
        def before_batch(self):
            if self.training: seen.append((self.learn.xb, self.learn.cut_mix.plan))
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(4,C)
        def forward(self, x, r): return self.l(r)
    b = Two([(x,r,labels)])
    Learner(DataLoaders(b, b), Net(), loss_func=nn.CrossEntropyLoss(), cbs=[cb,Keep()]).fit(1)
    (_,r1),plan = seen[0]
    kept = torch.tensor(plan.kept)[:,None]
    assert set(plan.lam.tolist()) <= {0.,1.} | set(plan.kept.tolist()) and not torch.equal(plan.lam, kept[:,0])
    torch.testing.assert_close(r1, kept*r + (1-kept)*r[torch.as_tensor(plan.idx)])

def test_counts_are_found():
    ds = TensorDataset(torch.zeros(40,1), torch.tensor([0]*30+[1]*8+[2]*2))
    assert label_counts(DataLoader(ds), 0, 1, 3).tolist()==[30,8,2]
    cb = fm.MixUp(imbalance=(3,.5))
    run(cb, ds=ds)
    assert cb._counts.tolist()==[30,8,2]
    with pytest.raises(ValueError, match='class_counts=None: the training set does not tell'): run(fm.MixUp(imbalance=(3,.5)))
    with pytest.raises(ValueError, match='2 numbers for 3 classes'): run(fm.MixUp(imbalance=(3,.5), class_counts=(1,2)))

def test_training_metrics_with_remix():
    "The dominant label is that of the new weight"
    batches = [(torch.rand(N,1,16,16),labels)]
    class Loader(list): n_inp = 1
    learn = Learner(DataLoaders(Loader(batches), Loader(batches)), net(), loss_func=nn.CrossEntropyLoss(), cbs=fm.MixUp(imbalance=(3,.5), class_counts=(9,3,1)), metrics=lambda p,y: (y>=0).float().mean())
    learn.recorder.train_metrics = True
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.log[2]==1

@pytest.mark.parametrize('make,why', [
    (lambda: fm.MixUp(partner='near'), "partner='near'.*'random', 'close', 'same', 'other', 'rare'"), (lambda: fm.CutMix(partner='same', mode='pair'), "mode='pair'"),
    (lambda: fm.FMix(bandwidth=1.), "only with partner='close'"), (lambda: fm.MixUp(imbalance=(.5,.5)), r'imbalance\[0\]=0.5'), (lambda: fm.MixUp(imbalance=(3,2)), r'imbalance\[1\]=2'),
    (lambda: fm.MixUp(imbalance=.5), 'None or two numbers'), (lambda: fm.MixUp(class_counts=(1,2)), 'only with imbalance'), (lambda: fm.MixUp(imbalance=(3,.5), class_counts=(1,-2)), 'class_counts=-2'),
    (lambda: fm.RecursiveMix(partner='same'), 'from the batch before'), (lambda: Mixup(partner='near'), "partner='near'"), (lambda: Mixup(partner='same', mode='pair'), "mode='pair'")])
def test_refused_when_made(make, why):
    with pytest.raises(ValueError, match=why): make()

def test_refused_in_the_first_batch():
    numbers = torch.rand(N,1)
    with pytest.raises(ValueError, match="partner='same' compares targets as classes"): run(fm.MixUp(partner='same'), y=numbers, loss=nn.MSELoss(), model=net(1))
    with pytest.raises(ValueError, match='and there is none'): run(fm.MixUp(imbalance=(3,.5)), y=numbers, loss=nn.MSELoss(), model=net(1))
    with pytest.raises(ValueError, match="partner='rare' compares"): Mixup(partner='rare', num_classes=C)(torch.rand(N,1,4,4), torch.rand(N,C))

# --- a plain loop

@pytest.mark.parametrize('kind', CLASS_PARTNERS)
def test_mixup_by_class(kind):
    x = torch.eye(N).view(N,1,4,4)
    mixed,t = Mixup(partner=kind, label_smoothing=0., num_classes=C)(x, labels)
    w = mixed.view(N,N)
    torch.testing.assert_close(t, w@F.one_hot(labels, C).float())
    if kind!='rare': assert ((t>0).sum(1)==(1 if kind=='same' else 2)).all()

class Photos(Dataset):
    def __len__(self): return 32
    def __getitem__(self, i): return torch.full((1,8,8), i/32), i%4, torch.full((8,8), i%4)
class Dicts(Photos):
    def __getitem__(self, i): return dict(pixel_values=torch.full((1,8,8), i/32), labels=i%4)

def mixed_batches(workers, ds=Photos(), seed=0, **kw):
    torch.manual_seed(seed)
    mix = MixCollate(Mixup(mixup_alpha=0., cutmix_alpha=1., mode='elem', label_smoothing=0., num_classes=4), **kw)
    return list(DataLoader(ds, batch_size=8, collate_fn=mix, num_workers=workers))

def same_batches(a, b): return all(torch.equal(o, p) for s,t in zip(a, b) for o,p in zip(s, t))

@pytest.mark.parametrize('workers', [0,2])
def test_collate(workers):
    "Repeatable, another batch each time, masks cut where pictures are"
    a,b,c = mixed_batches(workers),mixed_batches(workers),mixed_batches(workers, seed=1)
    assert same_batches(a, b) and not same_batches(a, c)
    for x,t,m in a:
        assert torch.equal(m, (x[:,0]*32).round().long()%4)
        assert t.shape==(8,4)
    plain = next(iter(DataLoader(Photos(), batch_size=8)))[0]
    assert all((x!=plain).any() for x,*_ in a)

def test_collate_forms():
    d = mixed_batches(0, Dicts())[0]
    assert d['labels'].shape==(8,4) and d['pixel_values'].shape==(8,1,8,8)
    samples = [(torch.rand(3),torch.rand(2),i) for i in range(4)]
    x,r,y = MixCollate(Mixup(num_classes=4), n_inp=2)(samples)
    assert (x.shape,r.shape,y.shape)==((4,3),(4,2),(4,4))
    with pytest.raises(TypeError, match='n_inp=3.*3 parts'): MixCollate(Mixup(num_classes=4), n_inp=3)(samples)
    with pytest.raises(ValueError, match='both must be functions'): MixCollate('mixup')
    assert torch.is_tensor(MixCollate(lambda x,y: (x*0,y))([(torch.rand(3),1)])[0])

def test_collate_knows_its_rank(monkeypatch):
    "What a worker that is started afresh is given"
    import pickle, fastmix.functional as f
    mix = MixCollate(Mixup(num_classes=4))
    assert pickle.loads(pickle.dumps(mix)).mixup.at_rank is None
    monkeypatch.setattr(f, 'is_distributed', lambda: True); monkeypatch.setattr(f, 'rank', lambda: 3)
    other = pickle.loads(pickle.dumps(mix))
    assert other.mixup.at_rank==3 and mix.mixup.at_rank is None
    monkeypatch.undo()
    x,y = torch.rand(4,1,4,4),torch.arange(4)
    def draw(m): torch.manual_seed(0); return m.mixup(x, y)[0]
    assert not torch.equal(draw(mix), draw(other))
