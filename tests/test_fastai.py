"Everything that fastai does still works with a mixing callback on the learner."
import warnings
import pytest, torch
from digits import *
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastcore.test import test_close as close, test_eq as eq, test_is as is_same
from fastmix.callback import *
from fastmix.loss import MixedLoss

family = pytest.mark.parametrize('cls', [MixUp,CutMix,CutMixUp,ResizeMix,FMix])

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return digit_dls(240, 32, path=tmp_path_factory.mktemp('fastai'))

def learner(dls, cbs=None, model=None, **kw):
    learn = Learner(dls, model or net(), metrics=kw.pop('metrics', accuracy), cbs=cbs, **kw)
    learn.remove_cb(ProgressCallback); learn.logger = noop
    return learn

class Watch(Callback):
    "Keeps what a callback sees in the middle of each training batch"
    run_valid = False
    order = 1
    def __init__(self): self.seen = []
    def before_batch(self): self.x0 = self.learn.xb[0]
    def after_pred(self): self.seen.append((self.learn.xb, self.learn.yb, self.learn.loss_func))

@family
@pytest.mark.parametrize('mode', ['elem','pair','batch'])
def test_contract_in_a_batch(dls, cls, mode):
    cb,w = cls(mode=mode),Watch()
    class Check(Callback):
        order = 2
        def after_pred(self):
            if not self.training: return
            t,lam,idx = self.learn.yb[0],cb.lam,cb.idx
            n = len(self.learn.x)
            assert t.shape==(n,10) and t.dtype==torch.float32 and lam.shape==(n,) and idx.shape==(n,)
            close(t.sum(1), torch.ones(n), 1e-5)
            hard = cb.batch.targets[0].own
            want = lam[:,None]*F.one_hot(hard,10) + (1-lam[:,None])*F.one_hot(hard[idx],10)
            close(t, want, 1e-6)
            assert isinstance(self.learn.loss_func, MixedLoss)
    learn = learner(dls, cb)
    learn.fit(1, cbs=[w, Check()])
    assert len(w.seen)==len(dls.train)

@family
def test_the_callers_batch_is_never_written_to(cls):
    "Batches that the user keeps, used again in each epoch"
    xs = [torch.randn(9,1,8,8) for _ in range(4)]; ys = [torch.randint(0,10,(9,)) for _ in range(4)]
    copies = [x.clone() for x in xs]
    class Cached:
        def __iter__(self): return iter(zip(xs,ys))
        def __len__(self): return 4
    dls = DataLoaders(Cached(), Cached())
    learn = learner(dls, cls(), loss_func=nn.CrossEntropyLoss())      # no dls.c: the model's width tells
    learn.fit(3)
    for a,b in zip(xs,copies): eq(a,b)

@pytest.mark.parametrize('cb', [MixUp, CutMix, RecursiveMix])
def test_the_number_of_classes_is_of_the_fit(cb):
    "It is found anew in each fit: the callback may have come to another learner, other loaders or another argument"
    cb,w = cb(),Watch()
    def batches(c): return [(torch.randn(8,1,8,8), torch.arange(8) % c)]*3
    for c in (3,7):
        learner(DataLoaders(batches(c), batches(c)), cb, net(c), loss_func=nn.CrossEntropyLoss(), metrics=None).fit(1, cbs=w)
        eq(w.seen[-1][1][0].shape, (8,c)); w.seen.clear()
    cb.n_classes = 9
    learner(DataLoaders(batches(3), batches(3)), cb, net(9), loss_func=nn.CrossEntropyLoss(), metrics=None).fit(1, cbs=w)
    eq(w.seen[-1][1][0].shape, (8,9))

def test_no_number_of_classes():
    class Named(nn.Module):
        def __init__(self): super().__init__(); self.net = net(3)
        def forward(self, x): return dict(logits=self.net(x))
    batches = [(torch.randn(8,1,8,8), torch.arange(8) % 3)]*2
    learn = learner(DataLoaders(batches, batches), MixUp(), Named(), loss_func=lambda p,y: F.cross_entropy(p['logits'], y), metrics=None)
    with pytest.raises(ValueError, match='output, a dict, a width; give n_classes'): learn.fit(1)

def test_n_classes(dls):
    "The argument, else `dls.c`, else the model's output, whose batch statistics stay as they were"
    for kw,c in ((dict(n_classes=12),12), (dict(),10)):
        w = Watch(); learner(dls, MixUp(**kw), net(12)).fit(1, cbs=w)
        eq(w.seen[0][1][0].shape[1], c)
    plain = DataLoaders([(torch.randn(8,1,8,8), torch.randint(0,7,(8,)))]*2, [(torch.randn(8,1,8,8), torch.randint(0,7,(8,)))])
    model = net(7); cb = MixUp()
    learn = learner(plain, cb, model, loss_func=CrossEntropyLossFlat(), metrics=None)
    stats = {}
    class Before(Callback):
        order = MixUp.order+1
        def before_batch(self): stats.setdefault('mean', model[1].running_mean.clone()); stats.setdefault('training', model.training)
    w = Watch(); learn.fit(1, cbs=[w, Before()])
    eq(w.seen[0][1][0].shape, (8,7)); eq(stats['mean'], torch.zeros(8)); assert stats['training']

def test_repeats_with_a_seed(tmp_path):
    def run():
        set_seed(3); learn = learner(digit_dls(120, 16), [MixUp(), CutMix()]); learn.fit(2); return torch.stack(learn.recorder.losses)
    eq(run(), run())

@family
def test_one_draw_of_torchs_stream(cls):
    "The rest of torch's random numbers are those of the same fit without us, one draw later"
    def state(cbs):
        set_seed(5); learn = learner(digit_dls(64, 16), cbs, net(p=.2))
        if not cbs: torch.empty((), dtype=torch.int64).random_()
        learn.fit(2); return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    a,b = state(cls()),state(None)
    eq(a[0], b[0]); eq(a[1:], b[1:])

def test_prob_0_and_alpha_0_are_plain_training():
    def run(cbs):
        set_seed(5)
        learn = learner(digit_dls(120, 16), cbs, net())
        if cbs is None: torch.empty((), dtype=torch.int64).random_()
        learn.fit(2); return torch.stack(learn.recorder.losses)
    plain = run(None)
    for cb in (MixUp(prob=0.), MixUp(0.), CutMix(0.), CutMixUp(0.,0.)): eq(run(cb), plain)

def test_two_callbacks_share_batches(dls):
    cbs = [MixUp(), CutMix()]; turns = []
    class Count(Callback):
        order,run_valid = 1,False
        def after_pred(self): turns.append([cb.plan is not None for cb in cbs])
    learn = learner(dls, cbs)
    learn.fit(40, cbs=Count())
    turns = np.array(turns)
    assert (turns.sum(1)==1).all()
    close(turns[:,0].mean(), .5, .12)                                # 240 batches: 3.7 standard deviations
    same = MixUp(); learn = learner(dls, same); w = Watch()
    learn.fit(1, cbs=[same, w])                                      # the same object in the learner and in fit: mixed once
    assert min(o[1][0].max(1).values.min().item() for o in w.seen) >= .5
    assert max((o[1][0]>1e-6).sum(1).max().item() for o in w.seen) <= 2

def test_own_prob_applies_to_the_chosen(dls):
    cbs = [MixUp(prob=0.), CutMix(mode='batch')]; mixed = []
    class Count(Callback):
        order,run_valid = 1,False
        def after_pred(self): mixed.append(self.learn.yb[0].ndim==2)
    learner(dls, cbs).fit(40, cbs=Count())
    close(np.mean(mixed), .5, .12)

@family
def test_validation_sees_the_users_loss(dls, cls):
    class Valid(Callback):
        order = 1
        def after_pred(self):
            if not self.training: is_same(self.learn.loss_func, loss_func); eq(self.learn.yb[0].dtype, torch.int64)
    learn = learner(dls, cls()); loss_func = learn.loss_func
    learn.fit(1, cbs=Valid())

def test_label_smoothing_once(dls):
    learn = learner(dls, MixUp(label_smoothing=.1), loss_func=LabelSmoothingCrossEntropyFlat(eps=.2))
    with pytest.warns(UserWarning, match='smooths labels by 0.2 already'): learn.fit(1)
    w = Watch(); learn = learner(dls, MixUp(label_smoothing=.1, prob=.5, mode='batch'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning); warnings.filterwarnings('ignore', category=DeprecationWarning)
        learn.fit(2, cbs=w)
    for xb,yb,_ in w.seen: close(yb[0].min().item(), .01, 1e-6)       # batches that are not mixed are smoothed as well
    with pytest.raises(ValueError, match='label_smoothing=0.1: FocalLossFlat'): learner(dls, MixUp(label_smoothing=.1), loss_func=FocalLossFlat()).fit(1)

@family
def test_train_metrics_score_the_dominant_label(dls, cls):
    "A model that is right about every unmixed picture is scored by which part dominates"
    learn = learner(dls, cls(mode='elem'), model=net()); rec = learn.recorder; rec.train_metrics = True
    seen = []
    class Score(Callback):
        order,run_valid = 1,False
        def after_loss(self):
            y = (cb:=[o for o in learn.cbs if isinstance(o, cls)][0]).batch.targets[0].own
            dom = torch.where(cb.lam>=.5, y, y[cb.idx])
            seen.append(((self.learn.pred.argmax(1)==dom).float().mean().item(), len(y)))
    learn.fit(1, cbs=Score())
    a,n = np.array(seen).T
    names = list(rec.metric_names)
    close(rec.values[0][names.index('train_accuracy')-1], (a*n).sum()/n.sum(), 1e-5)

@pytest.mark.every(3)
@family
@pytest.mark.parametrize('extra', ['fp16','bf16','channels_last','accumulate','clip','no_bar','csv','early','save','freeze'])
def test_with_fastais_own(dls, cls, extra, tmp_path):
    from fastai.callback.training import GradientAccumulation, GradientClip
    learn = learner(dls, cls()); loss_func,cbs = learn.loss_func,[]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                # torch's about CUDA autocast on a CPU
        if extra=='fp16': learn.to_fp16()
        elif extra=='bf16': learn.to_bf16()
        elif extra=='channels_last': learn.to_channelslast(use_amp=False)
        elif extra=='accumulate': cbs = GradientAccumulation(50)
        elif extra=='clip': cbs = GradientClip(.1)
        elif extra=='csv': cbs = CSVLogger(tmp_path/'h.csv')
        elif extra=='early': cbs = EarlyStoppingCallback('accuracy', patience=3)
        elif extra=='save': cbs = SaveModelCallback('accuracy')
        elif extra=='freeze': learn.create_opt(); learn.freeze()
        with learn.no_bar(): learn.fit_one_cycle(2, 1e-2, cbs=cbs)
        is_same(learn.loss_func, loss_func)
        close(learn.get_preds()[0].sum(1), torch.ones(60), 1e-4)
        assert np.isfinite(learn.validate()[0])

@family
def test_lr_find_interpretation_tta_show(dls, cls):
    import matplotlib.pyplot as plt
    learn = learner(dls, cls()); loss_func = learn.loss_func
    learn.fit(2, 1e-2)
    before = [p.clone() for p in learn.model.parameters()]
    assert learn.lr_find(num_it=20, show_plot=False).valley > 0
    for a,b in zip(before, learn.model.parameters()): eq(a,b)
    interp = ClassificationInterpretation.from_learner(learn)
    eq(interp.confusion_matrix().sum(), 60); interp.top_losses(3)
    preds,targs = learn.tta(n=2)
    eq(preds.shape, (60,10))
    losses = learn.get_preds(with_loss=True)[2]
    close(losses.mean().item(), learn.validate()[0], 1e-4)
    is_same(learn.loss_func, loss_func)
    plt.close('all')

def test_fine_tune_and_show_results(tmp_path):
    "A vision learner on a folder of pictures, as in the book"
    from PIL import Image
    import matplotlib.pyplot as plt
    x,y = digits()
    for s in ('train','valid'):
        for c in (3,8):
            (tmp_path/s/str(c)).mkdir(parents=True)
            for i in np.where(y==c)[0][:24] if s=='train' else np.where(y==c)[0][24:32]:
                Image.fromarray((x[i]*255).astype(np.uint8)).resize((32,32)).convert('RGB').save(tmp_path/s/str(c)/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, bs=16, num_workers=0, batch_tfms=aug_transforms(size=32))
    learn = vision_learner(dls, resnet18, metrics=accuracy, pretrained=False, cbs=MixUp())
    learn.remove_cb(ProgressCallback); learn.logger = noop; loss_func = learn.loss_func
    learn.fine_tune(1, freeze_epochs=1)
    is_same(learn.loss_func, loss_func)
    learn.show_results(max_n=4); plt.close('all')
    w = Watch(); learn.fit(1, cbs=w)
    eq(type(w.seen[0][0][0]), torch.Tensor)                              # after fastai's CastToTensor
    learn.remove_cb(CastToTensor); w = Watch(); learn.fit(1, cbs=w)
    eq(type(w.seen[0][0][0]), TensorImage)                               # the type is kept

def test_refused_input():
    u8 = [(torch.zeros(4,1,8,8, dtype=torch.uint8), torch.randint(0,10,(4,)))]
    with pytest.raises(TypeError, match='uint8.*IntToFloatTensor'): learner(DataLoaders(u8,u8), MixUp(), loss_func=nn.CrossEntropyLoss()).fit(1)
    flat = [(torch.zeros(4,8), torch.randint(0,2,(4,)))]
    with pytest.raises(ValueError, match='CutMix cuts over the dimensions'): learner(DataLoaders(flat,flat), CutMix(), nn.Linear(8,2), loss_func=nn.CrossEntropyLoss()).fit(1)

@pytest.mark.parametrize('make,says', [
    (lambda: MixUp(alpha=-1), 'alpha=-1'), (lambda: MixUp('a'), "alpha='a'"), (lambda: MixUp(float('nan')), 'alpha=nan'), (lambda: MixUp(prob=1.1), 'prob=1.1'),
    (lambda: MixUp(prob=True), 'prob=True'), (lambda: MixUp(mode='row'), "mode='row'.*'elem', 'pair', 'batch'"), (lambda: MixUp(label_smoothing=1.), 'label_smoothing=1.0'),
    (lambda: MixUp(interpolate_loss='yes'), "interpolate_loss='yes'"), (lambda: MixUp(n_classes=0), 'n_classes=0'), (lambda: MixUp(n_classes=2.5), 'n_classes=2.5'),
    (lambda: MixUp(schedule=.5), 'schedule=0.5'), (lambda: CutMix(minmax=.5), 'minmax=0.5'), (lambda: CutMix(minmax=(.8,.2)), 'minmax'), (lambda: CutMix(minmax=(-.1,.2)), 'minmax'),
    (lambda: CutMix(correct_lam=2), 'correct_lam=2'), (lambda: CutMixUp(switch_prob=-.1), 'switch_prob=-0.1'), (lambda: CutMixUp(cut_alpha=-1), 'cut_alpha=-1'), (lambda: CutMixUp(mix_alpha=None), 'mix_alpha=None')])
def test_bad_arguments_are_refused_when_made(make, says):
    with pytest.raises(ValueError, match=says): make()

def test_unknown_argument():
    with pytest.raises(TypeError): MixUp(probability=.5)

def test_state_is_saved_and_restored(dls):
    import json
    def seen(cb, state=None):
        w = Watch()
        learn = learner(dls, cb)
        class Load(Callback):
            order = 5
            def before_fit(self):
                if state: cb.load_state_dict(json.loads(json.dumps(state)))
        learn.fit(1, cbs=[w, Load()])
        return [cb_lam.sum().item() for _,(cb_lam,),_ in w.seen], cb.state_dict()
    cb = MixUp(); _,state = seen(cb)
    a,_ = seen(MixUp(), state); b,_ = seen(cb, state)


    r1,r2 = MixUp(),MixUp()
    r1.load_state_dict(state); r2.load_state_dict(state)
    eq(r1.draw(64,(8,8),1.).lam, r2.draw(64,(8,8),1.).lam); eq(r1.rng.random(), r2.rng.random())

@pytest.mark.parametrize('cb', [CutMix,CutMixUp,RecursiveMix])
def test_a_compiled_model_is_not_compiled_for_each_batch(cb, tmp_path):
    "Mixing compiles nothing that plain training would not compile"
    from torch._dynamo.testing import CompileCounter
    counts = []
    for cbs in (None,cb()):
        torch._dynamo.reset()
        count = CompileCounter()
        learn = learner(digit_dls(240, 32, path=tmp_path), cbs, torch.compile(net(), backend=count))
        learn.fit(2)
        counts.append((count.frame_count,count.op_count))
    torch._dynamo.reset()
    assert counts[0]==counts[1] and counts[0][0] <= 4                          # training and validation, whole and last batches
