"Previews show what training would do and change nothing; tables, schedules and runs are drawn from what is there."
import copy, warnings
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import CancelFitException, Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import SchedLin
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.tabular.all import CategoryBlock, Categorify, FillMissing, Normalize, TabularPandas, tabular_learner
from torch import nn
import fastmix.all as fm
from fastmix.all import show_mix
from fastmix import functional
from fastmix.functional import Mixup
from fastmix.handler import MixHandler
from kinds import KINDS, METHODS, Batches

@pytest.fixture(autouse=True)
def close_all():
    yield
    plt.close('all')

def learner(kind, cbs, seed=0):
    torch.manual_seed(seed)
    xb,yb,model,loss = KINDS[kind]()
    dl = Batches([(*xb,*yb)]*2, len(xb))
    learn = Learner(DataLoaders(dl, dl), model, loss_func=loss, cbs=cbs, lr=.1)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda o: None
    return learn,(*xb,*yb)

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    return len(a)==len(b) and all(map(same, a, b)) if isinstance(a, (tuple,list)) else a==b

def words(axs): return [[ax.get_title().replace('\n',' ') for ax in row] for row in axs]

# --- looking

shown = [o for o in KINDS if not o.startswith('volumes')]

@pytest.mark.every(3)
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', shown)
def test_looking_changes_nothing(kind, method):
    "What training refuses is refused here with the same words; whatever comes of it, model, callback, batch and random numbers stay as they were"
    learn,b = learner(kind, METHODS[method]())
    cb = next(o for o in learn.cbs if isinstance(o, fm.MixHandler))
    plain,_ = learner(kind, [])
    kept,state,modes = copy.deepcopy(b),copy.deepcopy(learn.model.state_dict()),[m.training for m in learn.model.modules()]
    d,ld,hooks = dict(cb.__dict__),set(learn.__dict__),[len(m._forward_hooks)+len(m._forward_pre_hooks) for m in learn.model.modules()]
    rng,nrng = torch.get_rng_state(),np.random.get_state()[1].copy()
    try: res,err = learn.show_mix(b=b),None
    except (ValueError,TypeError) as e: res,err = None,e
    assert torch.equal(rng, torch.get_rng_state()) and (nrng==np.random.get_state()[1]).all()
    assert cb.__dict__.keys()==d.keys() and all(cb.__dict__[k] is v for k,v in d.items())
    assert set(learn.__dict__)==ld and [len(m._forward_hooks)+len(m._forward_pre_hooks) for m in learn.model.modules()]==hooks
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in state.items())
    assert same(list(b), list(kept)) and [m.training for m in learn.model.modules()]==modes
    if isinstance(res, pd.DataFrame): assert {k[-1].split()[0] for k in res.index} <= {'own','partner','mixed','as'}
    elif res is not None: assert res.shape==(2,8)
    else:
        with pytest.raises(type(err)) as trained: learn.fit(1)
        assert str(err) in str(trained.value)

def test_a_run_after_a_look():
    "Training goes the same way whether one looked or not"
    def run(look):
        learn,b = learner('pictures, a label', [fm.CutMix(), fm.RecursiveMix()])
        if look: learn.show_mix(); learn.show_mix(b=b, seed=3)
        learn.fit(2)
        if look: learn.show_mix()
        return [p.detach().clone() for p in learn.model.parameters()]
    assert same(run(False), run(True))

class Looks(Callback):
    "Looks at each batch before it is trained with"
    order = MixHandler.order-1
    def before_batch(self):
        if self.training: self.learn.show_mix(b=(*self.xb,*self.yb), seed=self.iter)

@pytest.mark.every(2)
@pytest.mark.parametrize('make', [fm.MixUp, fm.CutMix, lambda: fm.CutMixUp(prob=.5), lambda: [fm.MixUp(), fm.ResizeMix()], fm.RecursiveMix, fm.FMix])
def test_a_look_at_a_running_fit(make):
    "A preview between two batches takes none of the run's random numbers"
    def run(look):
        learn,_ = learner('pictures, a label', make())
        learn.fit(3, cbs=Looks() if look else None)
        return [p.detach().clone() for p in learn.model.parameters()]
    assert same(run(False), run(True))

def test_volumes_say_so():
    learn,b = learner('volumes, a label', fm.MixUp())
    with pytest.raises(ValueError, match='with a slice of it'): learn.show_mix(b=b)

def test_titles_are_the_areas():
    "White pictures of class 0, black ones of class 1: the label says how much of a picture is white"
    x,y = torch.ones(8,1,16,16),torch.zeros(8, dtype=torch.long)
    x[:4],y[:4] = 0,1
    model = nn.Sequential(nn.Flatten(), nn.Linear(256,2))
    for cb in (fm.CutMix(mode='elem'), fm.MixUp(4.), fm.FMix(), fm.ResizeMix(), fm.RecursiveMix()):
        learn = Learner(DataLoaders(Batches([(x,y)], 1), Batches([(x,y)], 1)), model, loss_func=nn.CrossEntropyLoss(), cbs=cb)
        axs = learn.show_mix(max_n=8)
        parts = 0
        for ax,title in zip(axs[1], words(axs)[1]):
            white = np.asarray(ax.images[0].get_array()).mean()
            said = {c:float(v) for v,c in (o.split() if ' ' in o else (1,o) for o in title.split(' + '))}
            parts += len(said)>1
            near = .1 if isinstance(cb, fm.RecursiveMix) else .011     # what is in a shrunk picture is not worth its area to the pixel
            assert said.get('0', 0.)==pytest.approx(white, abs=near), f'{cb}: {title}, but {white:.3f} of it is white'
        assert parts, f'{cb} shows nothing mixed'

def test_full_strength_whatever_the_schedule():
    learn,b = learner('pictures, a label', fm.MixUp(4., schedule=SchedLin(0, 1)))
    assert any('+' in o for o in words(learn.show_mix(b=b))[1])
    assert learn.mix_up.schedule is not None

def test_seed():
    learn,b = learner('pictures, a label', fm.MixUp())
    a,c,d = (words(learn.show_mix(b=b, seed=s)) for s in (1,1,2))
    assert a==c and a!=d

def test_rows_of_pictures_and_axes():
    learn,b = learner('pictures, a label', [fm.MixUp(), fm.CutMix(), fm.ManifoldMixUp(layers='0.2')])
    ctxs = plt.subplots(4, 3)[1]
    before = plt.get_fignums()
    axs = learn.show_mix(b=b, max_n=3, ctxs=ctxs.flatten(), boxes=True)
    assert plt.get_fignums()==before and axs.shape==(4,3) and axs[0,0] is ctxs[0,0]
    assert [row[0].texts[0].get_text() for row in axs]==['before','MixUp','CutMix','ManifoldMixUp\nat 0.2']
    assert any(ax.patches for ax in axs[2]) and not any(ax.patches for ax in axs[1])
    assert learn.show_mix(b=b, max_n=2, figsize=(3,4))[0,0].figure.get_size_inches().tolist()==[3,4]

def test_a_mask_goes_with_its_picture():
    learn,b = learner('pictures, a mask', fm.CutMix(mode='elem'))
    axs = learn.show_mix(b=b)
    own,mixed = (np.ma.stack([ax.images[1].get_array() for ax in row]).filled(0) for row in axs)
    assert (own==b[1].numpy()).all() and (own!=mixed).any()
    learn,b = learner('pictures, a mask', fm.MixUp(4.))
    axs = learn.show_mix(b=b)
    own,mixed = (np.ma.stack([ax.images[1].get_array() for ax in row]).filled(0) for row in axs)
    assert (own==mixed).all() and any('own' in o and 'partner' in o for o in words(axs)[1])

@pytest.mark.parametrize('lo,hi', [(0,1), (-2,2), (0,255), (0,37.5)])
@pytest.mark.parametrize('c', [1,2,3,5])
def test_any_range_and_channels(lo, hi, c):
    "Nothing is clipped, no warning, and brightness is shared by all pictures of a figure"
    x = torch.rand(4,c,6,6)*(hi-lo)+lo
    if hi==255: x = x.round()
    x[0] /= 2
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        axs = show_mix(x, torch.arange(4), Mixup(num_classes=4))
        axs[0,0].figure.canvas.draw()
    pics = np.stack([ax.images[0].get_array() for ax in axs[0]])
    want = x[:,0].numpy() if c in (1,2) else x[:,:3].permute(0,2,3,1).numpy()
    k,d = np.polyfit(want.ravel(), pics.ravel(), 1)
    assert np.abs(k*want+d-pics).max()<1e-4 and k>0

# --- plain batches

def batch(n=8): return torch.rand(n,3,8,8, generator=torch.Generator().manual_seed(0)),torch.arange(n)%4

def test_plain_functions():
    from timm.data import Mixup
    from torchvision.transforms.v2 import CutMix
    (x,y),state = batch(),torch.get_rng_state()
    kept = x.clone()
    mixes = [functional.Mixup(num_classes=4, inplace=True), CutMix(num_classes=4), Mixup(num_classes=4), lambda x,y: (x.flip(0),y.flip(0))]
    axs = show_mix(x, y, mixes, vocab=list('abcd'))
    assert axs.shape==(5,8) and torch.equal(x, kept) and torch.equal(state, torch.get_rng_state())
    assert [r[0].texts[0].get_text() for r in axs]==['before','Mixup','CutMix','Mixup','<lambda>']
    assert words(axs)[0]==list('abcdabcd') and words(axs)[4]==list('dcbadcba')
    np.testing.assert_allclose(axs[4,0].images[0].get_array(), x[-1].permute(1,2,0), atol=1e-6)

def test_plain_mix_stays_as_it_is():
    x,y = batch()
    mix = Mixup(num_classes=4, cutmix_alpha=1.)
    d = dict(mix.__dict__)
    show_mix(x, y, mix, boxes=True)
    assert mix.__dict__==d

def test_stats():
    x,y = batch()
    mean,std = [.5,.4,.3],[.2,.3,.1]
    z = (x-torch.tensor(mean).view(-1,1,1))/torch.tensor(std).view(-1,1,1)
    axs = show_mix(z, y, Mixup(num_classes=4), stats=(mean,std))
    np.testing.assert_allclose(axs[0,2].images[0].get_array(), x[2].permute(1,2,0), atol=1e-5)

def test_plain_rows():
    x,y = torch.rand(6,5),torch.arange(6)%3
    t = show_mix(x, y, Mixup(num_classes=3, label_smoothing=0.))
    assert list(t.columns)==['weight',0,1,2,3,4,'label'] and len(t)==12
    own,partner,mixed = (t.xs(o, level=1) for o in ('own','partner','mixed'))
    w = own.weight.astype(float)
    for c in range(5): np.testing.assert_allclose(mixed[c].astype(float), w*own[c].astype(float)+(1-w)*partner[c].astype(float), atol=.01)

@pytest.mark.parametrize('mix,err,says', [(fm.MixUp(), TypeError, 'learn.show_mix'), (3, TypeError, 'must be a function'),
    (lambda x,y: x, TypeError, 'must give two'), ])
def test_plain_refuses(mix, err, says):
    with pytest.raises(err, match=says): show_mix(*batch(), mix)

def test_plain_refuses_rows_of_a_function():
    with pytest.raises(ValueError, match='partners'): show_mix(torch.rand(4,3), torch.arange(4), lambda x,y: (x,y))
    with pytest.raises(ValueError, match='3 samples'): show_mix(torch.rand(4,3,2,2), torch.arange(3), Mixup())

# --- tables and text

def table(cbs, y=None, **kwargs):
    df = pd.DataFrame(dict(year=[2010.,2011.,2012.,2013.]*10, shop=list('abcde')*8, price=np.linspace(1, 9, 40), size=[1.,np.nan,3.,4.,5.]*8,
                           sold=['no','yes']*20 if y is None else y))
    to = TabularPandas(df, [Categorify, FillMissing, Normalize], ['year','shop'], ['price','size'], 'sold', splits=(list(range(30)),list(range(30,40))))
    return tabular_learner(to.dataloaders(bs=16), [8], cbs=cbs, **kwargs)

@pytest.mark.parametrize('layers', ['input', 'layers.0', None])
def test_table(layers):
    learn = table(fm.ManifoldMixUp(layers=layers))
    t = learn.show_mix(max_n=3, seed=2)
    assert list(t.columns)==['weight','year','shop','size_na','price','size','sold'] and len(t)==9
    at = t.index[2][1]
    own,partner,mixed = (t.xs(o, level=1) for o in ('own','partner',at))
    assert at.startswith('mixed at ') and set(own.shop)|set(partner.shop)<=set('abcde') and set(own.sold)|set(partner.sold)<={'no','yes'}
    w = own.weight.astype(float)
    np.testing.assert_allclose(w+partner.weight.astype(float), 1, atol=.011)
    for i in range(3):
        a,b = own.sold.iloc[i],partner.sold.iloc[i]
        assert mixed.sold.iloc[i]==(a if a==b else f'{round(w.iloc[i],2):g} {a} + {round(1-w.iloc[i],2):g} {b}')
    if at=='mixed at input':
        np.testing.assert_allclose(mixed.price.astype(float), w*own.price.astype(float)+(1-w)*partner.price.astype(float), atol=.06)
        a,b = own.year,partner.year
        assert all(m==x if x==y else m==f'{v:.2f} {x} + {1-v:.2f} {y}' for m,x,y,v in zip(mixed.year, a, b, w))
    else: assert (mixed.iloc[:,:-1]=='').all(axis=None)

def test_table_number_and_several():
    learn = table([fm.ManifoldMixUp(layers='input'), fm.ManifoldMixUp(prob=0.)], y=np.arange(40.))
    t = learn.show_mix(max_n=2)
    assert t.index.nlevels==3 and set(t.index.get_level_values(0))=={'ManifoldMixUp'} and list(t.index.get_level_values(2)[-2:])==['as it is']*2
    own,partner,mixed = (t.xs(o, level=2).sold.astype(float) for o in ('own','partner','mixed at input'))
    assert ((mixed>=np.minimum(own,partner)-1) & (mixed<=np.maximum(own,partner)+1)).all()

def test_table_as_html():
    "Long texts are shown in full"
    from fastmix.show import _TextTable as _Table
    assert 'x'*200 in _Table(dict(text=['x'*200]))._repr_html_()

def test_words():
    "Texts are cut at a word, padding left out, and a label's names are not those of the words"
    from fastai.text.all import Categorize, Datasets, ItemGetter, Numericalize, pad_input
    docs = [(' '.join(['one','two','three'][:1+i%3]*(1+i)), 'xy'[i%2]) for i in range(12)]
    dls = Datasets(docs, [[ItemGetter(0), str.split, Numericalize(min_freq=1)], [ItemGetter(1), Categorize()]]).dataloaders(
        bs=6, before_batch=pad_input, num_workers=0)
    class M(nn.Module):
        def __init__(self): super().__init__(); self.emb,self.lin = nn.Embedding(20,4),nn.Linear(4,2)
        def forward(self, x): return self.lin(self.emb(x).mean(1))
    t = Learner(dls, M(), loss_func=nn.CrossEntropyLoss(), cbs=fm.ManifoldMixUp()).show_mix(max_n=6, trunc_at=30)
    assert list(t.columns)==['weight','text','label']
    own = t.xs('own', level=1)
    assert set(own.label)=={'x','y'} and set(' '.join(own.text).split())<={'one','two','three','…'} and own.text.str.len().max()<=32
    assert (t[t.index.get_level_values(1).str.startswith('mixed')].text=='').all()

# --- weights, schedules, runs

def test_plot_lam():
    ax = plt.subplots()[1]
    assert fm.plot_lam(.4, ax=ax, n=1000) is ax and len(ax.patches)==1
    assert fm.plot_lam([.1,1], fold=False, n=1000).get_xlim()[0]<0
    with pytest.raises(ValueError, match='alphas=-1'): fm.plot_lam([1,-1])

def trained(n_epoch=4, cbs=fm.MixUp, fit=None, **kwargs):
    learn,_ = learner('pictures, a label', cbs() if isinstance(cbs, type) else cbs)
    learn.metrics = [accuracy]
    (fit or (lambda l: l.fit_long(n_epoch, 1e-2, advice=False, **kwargs)))(learn)
    return learn

@pytest.mark.parametrize('kwargs', [{}, dict(schedule=None), dict(schedule=fm.hesitation(.25,.75), div=10, div_final=100, pct_start=.4, moms=(.9,.8,.9)),
                                    dict(schedule=fm.off_after(3, fade=1))])
def test_plan_is_what_happens(kwargs):
    learn = trained(4, **kwargs)
    plan = fm.planned_run(4, 1e-2, steps=2, **kwargs)
    assert len(plan)==8
    for k in ('lr','mom','mix_prob'): np.testing.assert_allclose(plan[k], learn.recorder.hps[k], rtol=1e-6, atol=1e-9)

def test_plan_of_strength_and_slices():
    plan = fm.planned_run(10, slice(1e-5, 1e-3), schedule=fm.MixSchedule(strength=SchedLin(1,0)), prob=.5, steps=10)
    assert plan.lr.max()==pytest.approx(1e-3) and (plan.mix_prob==.5).all()
    np.testing.assert_allclose(plan.mix_strength, 1-plan.epoch/10)
    with pytest.raises(ValueError, match='prob=2'): fm.planned_run(10, prob=2)

def xs(ax, i=0): return np.asarray(ax.lines[i].get_xdata(), float)
def ys(ax, i=0): return np.asarray(ax.lines[i].get_ydata(), float)

def test_plot_schedule_of_a_learner():
    learn = trained(4)
    axs = fm.plot_schedule(learn)
    np.testing.assert_allclose(ys(axs[0]), learn.recorder.hps['lr'])
    np.testing.assert_allclose(xs(axs[0]), np.arange(8)/2)
    assert [len(ax.lines) for ax in axs]==[1,1,2] and axs[0].get_xlabel()=='epoch'
    learn.validate()
    np.testing.assert_allclose(xs(fm.plot_schedule(learn)[0]), np.arange(8)/2)
    np.testing.assert_allclose(xs(fm.plot_schedule(trained(4, start_epoch=2))[0]), 2+np.arange(4)/2)

def test_plot_schedule_of_an_interrupted_run():
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.learn.epoch==1: raise CancelFitException
    axs = fm.plot_schedule(trained(4, cbs=[fm.MixUp(), Stop()]))
    assert xs(axs[0])[0]==0 and xs(axs[0])[-1]<2

def test_plot_schedule_without_mixing_or_recorder():
    axs = fm.plot_schedule(trained(fit=lambda l: l.fit_one_cycle(3, 1e-2), cbs=[]))
    assert [len(ax.lines) for ax in axs]==[1,1,0]
    axs = fm.plot_schedule(trained(fit=lambda l: l.fit(3, 1e-2), cbs=[]))
    assert (ys(axs[0])==1e-2).all()
    with pytest.raises(ValueError, match='planned_run'): fm.plot_schedule(learner('pictures, a label', [])[0])

def test_plot_schedule_of_files_and_several(tmp_path):
    csv = CSVLogger(tmp_path/'history.csv')
    learn = trained(3, cbs=[fm.MixUp(), csv])
    file = learn.path/csv.fname
    own = plt.subplots(1, 3)[1]
    axs = fm.plot_schedule({'done':learn, 'file':file, 'folder':str(file.parent), 'plan':fm.planned_run(5, 1e-2)}, axs=own)
    assert axs is own and len(axs[0].lines)==4 and [t.get_text() for t in axs[0].get_legend().get_texts()]==['done','file','folder','plan']
    np.testing.assert_array_equal(xs(axs[0], 1), [0,1,2])
    assert len(fm.plot_schedule(learn.recorder.hps)[0].lines)==1 and fm.plot_schedule(dict(lr=[1,2]))[0].get_xlabel()=='step'

def test_plot_run_of_a_learner(tmp_path):
    csv = CSVLogger(tmp_path/'history.csv')
    learn = trained(3, cbs=[fm.MixUp(), csv], ema=.5)
    axs = fm.plot_run(learn)
    assert [ln.get_label() for ln in axs[0].lines]==['train_loss','valid_loss','valid_loss, averaged']
    assert [ln.get_label() for ln in axs[1].lines]==['accuracy','accuracy, averaged']
    a,e = axs[1].lines
    assert a.get_color()==e.get_color() and a.get_linestyle()!=e.get_linestyle() and e.get_linewidth()>a.get_linewidth()
    np.testing.assert_allclose(ys(axs[0], 1), [o[1] for o in learn.recorder.values])
    other = fm.plot_run(learn.path/csv.fname)
    for x,y in zip(axs, other):
        for i in range(len(x.lines)): np.testing.assert_allclose(ys(x, i), ys(y, i), atol=1e-5)
    learn.validate()
    with pytest.raises(ValueError, match='history.csv'): fm.plot_run(learn)
    with pytest.raises(ValueError, match='history.csv'): fm.plot_run(learner('pictures, a label', [])[0])

def test_plot_run_of_several():
    h = pd.DataFrame(dict(epoch=range(3), train_loss=[3,2,1.], valid_loss=[3,2,1.], accuracy=[0,.5,1], f1_score=[0,.4,.9], ema_accuracy=[.1,.2,.3],
                          lr=[1,2,3.], mom=[1,2,3.], mix_prob=[1,1,0], mix_weight=[.1,.1,0], time=['00:01']*3))
    own = plt.subplots(1, 2)[1]
    axs = fm.plot_run({'a':h, 'b':h.drop(columns='ema_accuracy')}, axs=own)
    assert axs is own and [len(ax.lines) for ax in axs]==[4,5]
    assert [ln.get_label() for ln in axs[1].lines]==['a accuracy','a f1_score','a accuracy, averaged','b accuracy','b f1_score']
    assert len({ln.get_color() for ln in axs[1].lines})==2
    axs = fm.plot_run({'a':h, 'b':h}, metrics=['accuracy'])
    assert [len(ax.lines) for ax in axs]==[4,4]
    assert len({ln.get_color() for ln in fm.plot_run(h)[1].lines})==2

def test_what_editors_know():
    "The stub of `Learner` has the signatures and docstrings of the methods that fastmix adds"
    import ast
    from pathlib import Path
    here = Path(fm.__file__).parent
    stub = {o.name:o for o in ast.parse((here/'_learner.pyi').read_text(encoding='utf-8')).body[-1].body}
    def parameters(f): return [(o.arg, o.annotation and ast.unparse(o.annotation)) for o in f.args.args[1:]], len(f.args.defaults), f.args.kwarg is not None
    for name,room in dict(fit_long='recipe', show_mix='show', many_devices='distributed').items():
        tree = ast.parse((here/f'{room}.py').read_text(encoding='utf-8'))
        f = next(o for o in tree.body if isinstance(o, ast.FunctionDef) and o.name==name and 'patch' in ast.unparse(o.decorator_list[0]))
        assert parameters(f)==parameters(stub[name]) and ast.get_docstring(f)==ast.get_docstring(stub[name]), name
        if f.returns and name!='many_devices': assert ast.unparse(f.returns)==ast.unparse(stub[name].returns), name
    assert set(stub)=={'fit_long','show_mix','many_devices'}
