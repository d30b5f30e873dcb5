"fastai's logger callbacks with `fit_long`: TensorBoard's files and Weights & Biases offline, where they are installed."
import os
import pytest
from digits import *
from fastmix.all import *

def learner(): return Learner(digit_dls(), net(), metrics=accuracy)

def test_tensorboard(tmp_path):
    "Losses, learning rates and metrics of each epoch are in the files, mixing or not"
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit_long(3, 1e-2, cbs=[MixUp(), TensorBoardCallback(log_dir=tmp_path, trace_model=False, log_preds=False)])
    acc = EventAccumulator(str(tmp_path)); acc.Reload()
    tags = acc.Tags()['scalars']
    assert 'train_loss' in tags and 'accuracy' in tags and any(o.startswith('lr') for o in tags)
    assert len(acc.Scalars('train_loss'))==3*(len(learn.dls.train)+len(learn.dls.valid)) and len(acc.Scalars('accuracy'))==3     # fastai's callback logs in validation too
    assert learn.loss_func is not None and not hasattr(learn.loss_func, 'plan')

def test_wandb_offline(tmp_path, monkeypatch):
    "A run that is logged offline, without an account"
    wandb = pytest.importorskip('wandb', reason='wandb is not installed')
    from fastai.callback.wandb import WandbCallback
    for k,v in dict(WANDB_MODE='offline', WANDB_DIR=str(tmp_path), WANDB_SILENT='true', WANDB_CACHE_DIR=str(tmp_path)).items(): monkeypatch.setenv(k, v)
    run = wandb.init(project='digits', dir=str(tmp_path), mode='offline')
    learn = learner()
    try:
        try:
            plain = learner()
            with plain.no_bar(), plain.no_logging(): plain.fit(1, cbs=WandbCallback(log_preds=False, log_model=False))
        except TypeError as e: pytest.skip(f"fastai's WandbCallback fails without fastmix too: {e}")
        with learn.no_bar(), learn.no_logging(): learn.fit_long(2, 1e-2, cbs=[CutMix(), WandbCallback(log_preds=False, log_model=False)])
        assert run.summary['epoch']==2 and 'accuracy' in run.summary.keys() and 'train_loss' in run.summary.keys()
    finally: wandb.finish()
    assert list((tmp_path/'wandb').glob('offline-run-*'))
