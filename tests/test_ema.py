"The average beside everything else that happens in validation: each sample once, each model its own prediction."
import contextlib
import pytest, torch
from digits import *
from torch.amp import autocast
from fastai.callback.progress import ProgressCallback
from fastai.callback.rnn import ModelResetter, RNNCallback
from fastai.callback.tracker import ReduceLROnPlateau, SaveModelCallback
from fastmix.ema import EMA
from fastmix.methods import MixUp

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return digit_dls(120, 16, path=tmp_path_factory.mktemp('ema'))

def learner(dls, cbs=None, model=None, metrics=accuracy, **kw):
    learn = Learner(dls, model or net(), metrics=metrics, cbs=cbs, **kw)
    learn.remove_cb(ProgressCallback); learn.logger = noop
    return learn

def announced(learn): return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))

def check_average(learn, ema, **tol):
    "What was announced for the average is what `validate` says of it, and the weights themselves have their own results"
    said = announced(learn)
    for prefix,context in (('ema_',ema.averaged(learn)), ('',contextlib.nullcontext())):
        with context: loss,acc = learn.validate()
        assert said[f'{prefix}valid_loss']==pytest.approx(loss, **tol) and said[f'{prefix}accuracy']==pytest.approx(acc, abs=.05)

class Collect(Callback):
    "Keeps what it is shown of the validation set"
    run_train = False
    def __init__(self, order): self.order = order
    def before_validate(self): self.preds,self.xs,self.losses,self.log = [],[],[],[]
    def before_batch(self): self.log.append('before_batch'); self.xs.append(self.x)
    def after_pred(self): self.log.append('after_pred'); self.preds.append(self.pred)
    def after_loss(self): self.log.append('after_loss'); self.losses.append(self.learn.loss.detach())
    def after_batch(self): self.log.append('after_batch'); assert torch.equal(self.preds[-1], self.learn.pred) and torch.equal(self.losses[-1], self.learn.loss)

@pytest.mark.parametrize('order', [-5,1,54,56,70])
def test_others_see_each_sample_once(dls, order):
    c,ema = Collect(order),EMA(.8, swap=False)
    learn = learner(dls, [MixUp(), c])
    learn.fit(2, 1e-2, cbs=ema)
    preds,losses,k = torch.cat(c.preds),torch.stack(c.losses),len(dls.valid)
    assert len(preds)==len(dls.valid_ds) and c.log==['before_batch','after_pred','after_loss','after_batch']*k
    with torch.no_grad(): want = learn.model.eval()(torch.cat(c.xs))
    torch.testing.assert_close(preds, want)                        # of the weights themselves
    check_average(learn, ema, abs=1e-5)

class Autocast(Callback):
    "As fastai's `MixedPrecision`, on a CPU"
    order = 10
    def before_batch(self):
        self.autocast = autocast('cpu', dtype=torch.bfloat16)
        self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.learn.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)

def test_in_half_precision(dls):
    "autocast keeps halved copies of the weights; the average is not run with those"
    c,ema = Collect(20),EMA(.99, swap=False)
    learn = learner(dls, [MixUp(), Autocast, c])
    learn.fit(2, 3e-2, cbs=ema)
    said = announced(learn)
    check_average(learn, ema, rel=1e-3)
    assert abs(said['ema_valid_loss']-said['valid_loss'])>.01 and len(c.preds)==len(dls.valid)

def test_what_others_do_to_batch_and_prediction(dls):
    "A batch that another callback changes, and a prediction that it takes apart"
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.net = net()
        def forward(self, x): return self.net(x),x
    class Half(Callback):
        order = -3
        def before_batch(self): self.learn.xb = (self.x*.5,)
        def after_pred(self): self.learn.pred = self.learn.pred[0]
    ema = EMA(.8, swap=False)
    learn = learner(dls, [MixUp(), Half], Two())
    learn.fit(2, 1e-2, cbs=ema)
    check_average(learn, ema, abs=1e-5)

def test_a_model_that_remembers():
    "A language model keeps its state from batch to batch: the average has its own, and the weights theirs"
    from fastai.text.all import AWD_LSTM, LMDataLoader, get_language_model
    torch.manual_seed(0)
    texts = [torch.randint(0, 30, (k,)) for k in (90,70,111,64)]
    dls = DataLoaders(*(LMDataLoader(texts, bs=4, seq_len=11, num_workers=0) for _ in range(2)))
    def fit(cbs):
        set_seed(1)
        config = dict(emb_sz=8, n_hid=8, n_layers=2, pad_token=1, bidir=False, output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=.1,
                      tie_weights=True, out_bias=True)
        learn = Learner(dls, get_language_model(AWD_LSTM, 30, config=config), CrossEntropyLossFlat(), metrics=accuracy, cbs=[ModelResetter(), RNNCallback()])
        learn.remove_cb(ProgressCallback); learn.logger = noop
        learn.fit(2, 1e-2, cbs=cbs)
        return learn
    ema = EMA(.9, swap=False)
    plain,learn = fit(None),fit(ema)
    assert announced(learn)['valid_loss']==pytest.approx(announced(plain)['valid_loss'], abs=1e-6)
    check_average(learn, ema, abs=1e-5)

def test_plateau_sees_the_average(dls):
    "The learning rate falls when the average stops to improve"
    learn = learner(dls)
    learn.fit(4, 0., cbs=[EMA(.5),ReduceLROnPlateau('ema_valid_loss', patience=1, factor=10)])
    assert learn.opt.hypers[-1]['lr']==0.
    learn.fit(4, 1e-9, cbs=[EMA(.5),ReduceLROnPlateau('ema_valid_loss', patience=1, factor=10, min_delta=1e-3)])
    assert learn.opt.hypers[-1]['lr']<1e-11

@pytest.mark.parametrize('swap', [True,False])
def test_two_that_save(dls, swap):
    "Each saves the weights that it monitors; the one that monitors the weights themselves gets those"
    seen = []
    class Note(Callback):
        order = 54
        def after_epoch(self): seen.append(({k:t.clone() for k,t in self.learn.ema._avg.items()}, {k:t.clone() for k,t in self.learn.model.state_dict().items()}))
    learn = learner(dls)
    saves = [SaveModelCallback(m, fname=f, every_epoch=True) for m,f in (('ema_valid_loss','avg'),('valid_loss','own'))]
    learn.fit(2, 1e-2, cbs=[EMA(.8, swap=swap), Note, *saves])
    for e,(avg,own) in enumerate(seen):
        for f,want in (('avg',avg),('own',own)):
            saved = torch.load(learn.path/learn.model_dir/f'{f}_{e}.pth')
            assert all(torch.equal(saved[k], want[k]) for k in want), f
    assert all('after_epoch' not in vars(cb) for cb in saves)

def test_an_exception_while_the_average_is_lent(dls):
    class Monitor(Callback):
        monitor,order = None,60
        def __init__(self): self.monitor = 'ema_valid_loss'
        def after_epoch(self): raise KeyboardInterrupt
    learn,ema = learner(dls),EMA(.8)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-2, cbs=[ema,Monitor()])
    assert any(not torch.equal(t, ema._avg[k]) for k,t in learn.model.state_dict().items())
    learn.fit(1)
