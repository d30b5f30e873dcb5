"""Pictures that stay on a device as bytes: cropped, flipped and normalised there, a whole batch at a time.

An accelerator waits for pictures if a processor has to open, crop and resize each of them in every epoch. Here a data set is opened once, all of it
lies on the device as `uint8`, and a batch is a few large operations on it. Random numbers are drawn on the CPU, so that a seed means the same on
every device; nothing is read back from the device. `bench/accuracy.py --device` trains with these loaders."""
import functools,math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from PIL import Image
from sklearn.model_selection import train_test_split

from fastmix.data import check_folder

SMALL = 64      # pictures up to this side are cropped after padding, larger ones are cropped and resized

# --- a data set as arrays

def splits_of(y, y_test, n, part):
    "Indices to train with, the same ones for either part, and to test with: test images come after the training images"
    idx = np.arange(len(y))
    if n is None and part=='valid': n = int(.8*len(y))
    train,rest = (idx,idx[:0]) if n in (None,len(y)) else train_test_split(idx, train_size=n, stratify=y, random_state=1234)
    return np.sort(train), np.sort(rest) if part=='valid' else len(y)+np.arange(len(y_test))

def square(file, side):
    "The middle square of a picture, `side` pixels wide, as bytes (side,side,3)"
    with Image.open(file) as im:
        im = im.convert('RGB')
        w,h = im.size
        cut = min(w, h)
        box = (w-cut)/2,(h-cut)/2,(w+cut)/2,(h+cut)/2
        return np.asarray(im.resize((side,side), Image.BILINEAR, box=box, reducing_gap=3.))

def decode(path, out, side, workers=None):
    "Open the pictures of a folder with train/CLASS/* and val/CLASS/* once, on all cores, and write them to `out` as an `.npz` is laid out"
    files = check_folder(Path(path))
    vocab = sorted({f.parent.name for f in files})
    for name in ('train','val'):
        some = [f for f in files if f.parent.parent.name==name]
        x = np.lib.format.open_memmap(Path(out)/f'x_{name}.npy', 'w+', np.uint8, (len(some),side,side,3))
        with ProcessPoolExecutor(workers) as pool:
            for i,o in enumerate(pool.map(functools.partial(square, side=side), some, chunksize=32)): x[i] = o
        x.flush()
        np.save(Path(out)/f'y_{name}.npy', np.array([vocab.index(f.parent.name) for f in some]))
    return out

def arrays(path):
    "x (n,h,w,c) `uint8`, y (n,), and y of the test pictures, which come last: from an `.npz` or from what `decode` wrote"
    path = Path(path)
    if path.is_dir(): d = {k:np.load(path/f'{k.replace("test", "val")}.npy', mmap_mode='r') for k in ('x_train','y_train','x_test','y_test')}
    else: d = np.load(path, allow_pickle=False)
    x = np.concatenate([d['x_train'],d['x_test']])
    return x if x.ndim==4 else x[...,None], np.array(d['y_train']),np.array(d['y_test'])

def some_classes(x, y, y_test, classes):
    "Of `arrays` those of the classes `'5:10'`, which become 0 to 4"
    a,b = map(int, classes.split(':'))
    train,test = ((a<=o)&(o<b) for o in (y,y_test))
    return x[np.concatenate([train,test])],y[train]-a,y_test[test]-a

# --- a batch on the device

def take(x, y, idx):
    "Pictures and labels of a list of indices, taken on the device"
    idx = torch.as_tensor(idx).to(x.device, non_blocking=True)
    return x[idx],y[idx]

def normalised(xb, mean, std):
    "Bytes or floats (n,c,h,w) in 0 to 255 as floats; grey ones become three channels"
    return ((xb.float()-mean)/std).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

def crop_boxes(n, min_scale=.35, ratio=(3/4,4/3)):
    "Centres and half sides, each (n,2) with width first, of random crops in a picture from -1 to 1: as fastai's `RandomResizedCrop` draws them"
    area = torch.empty(n).uniform_(min_scale, 1)
    r = torch.empty(n).uniform_(*map(math.log, ratio)).exp()
    half = torch.stack([area*r, area/r], 1).sqrt().clamp(max=1)
    return (1-half)*(2*torch.rand(n, 2)-1),half

def resized(xb, centre, half, size, flip=None):
    "The boxes of a batch (n,c,h,w), each resized to `size` pixels by bilinear interpolation; mirrored where `flip` (n,) is -1"
    n,sign = len(xb),torch.ones(len(centre)) if flip is None else flip
    theta = torch.zeros(n, 2, 3)
    theta[:,0,0],theta[:,1,1],theta[:,:,2] = half[:,0]*sign,half[:,1],centre
    grid = F.affine_grid(theta.to(xb.device, non_blocking=True), (n,xb.shape[1],size,size), align_corners=False)
    return F.grid_sample(xb.float(), grid, padding_mode='reflection', align_corners=False)

def signs(n, flip): return torch.where(torch.rand(n)<.5, 1., -1.) if flip else torch.ones(n)

def large_train(x, y, size, flip, norm, idx):
    "A training batch of photos: random crops, resized, and flips"
    xb,yb = take(x, y, idx)
    return norm(resized(xb, *crop_boxes(len(xb)), size, signs(len(xb), flip))),yb

def large_test(x, y, size, norm, idx, share=.9):
    "A batch of photos to test with: the middle"
    xb,yb = take(x, y, idx)
    return norm(resized(xb, torch.zeros(len(xb), 2), torch.full((len(xb),2), share), size)),yb

def small_train(padded, y, flip, norm, idx, pad=4):
    "A training batch of small pictures, which are padded already: crops of their own size, and flips"
    xb,yb = take(padded, y, idx)
    n,(h,w) = len(xb),(o-2*pad for o in xb.shape[-2:])
    top,left = torch.randint(2*pad+1, (2,n,1))
    rows,cols = top+torch.arange(h),torch.arange(w).expand(n, -1)
    cols = left+torch.where(signs(n, flip)[:,None]<0, cols.flip(1), cols)
    rows,cols = (o.to(xb.device, non_blocking=True) for o in (rows,cols))
    return norm(xb[torch.arange(n, device=xb.device)[:,None,None], :, rows[:,:,None], cols[:,None]].permute(0,3,1,2)),yb

def small_test(x, y, norm, idx):
    xb,yb = take(x, y, idx)
    return norm(xb),yb

# --- loaders

def moments(x, idx, chunk=512):
    "Mean and standard deviation, each (1,c,1,1), of the values of the pictures `idx`"
    s = s2 = n = 0
    for i in np.array_split(idx, -(-len(idx)//chunk)):
        o = x[torch.as_tensor(i).to(x.device)].double()
        s,s2,n = s+o.sum((0,2,3)),s2+(o*o).sum((0,2,3)),n+o[:,0].numel()
    mean = s/n
    return tuple(o.float().view(1,-1,1,1) for o in (mean, (s2/n-mean**2).sqrt()))

class OnDevice:
    "A data set on a device, and loaders of it"
    def __init__(self, path, device, n=None, part='test', classes=None):
        x,y,y_test = arrays(path)
        if classes: x,y,y_test = some_classes(x, y, y_test, classes)
        train,_ = splits_of(y, y_test, n, part)
        self.device,self.n,self.ys = torch.device(device),n,(y,y_test)
        self.x = torch.as_tensor(x).to(self.device).permute(0,3,1,2).contiguous()
        self.y = torch.as_tensor(np.concatenate([y,y_test])).long().to(self.device)
        mean,std = moments(self.x, train)
        self.norm = functools.partial(normalised, mean=mean, std=std)
        self.fill = mean.round().byte()

    def batches(self, size, flip):
        "How a batch is made of indices, in training and in testing"
        side = min(self.x.shape[-2:])
        if side>SMALL:
            return (functools.partial(large_train, self.x, self.y, size, flip, self.norm), functools.partial(large_test, self.x, self.y, size, self.norm))
        n,c,h,w = self.x.shape
        padded = self.fill.expand(n, -1, h+8, w+8).clone()       # the mean colour around them, which is 0 when normalised
        padded[...,4:-4,4:-4] = self.x
        return functools.partial(small_train, padded, self.y, flip, self.norm), functools.partial(small_test, self.x, self.y, self.norm)

    def dls(self, part, bs, size, flip=True):
        "Loaders to train with and to test `part` with"
        train,test = splits_of(*self.ys, self.n, part)
        for_train,for_test = self.batches(size, flip)
        res = DataLoaders(DataLoader(train.tolist(), bs=bs, shuffle=True, drop_last=True, create_batch=for_train, device=self.device),
                          DataLoader(test.tolist(), bs=500, create_batch=for_test, device=self.device), device=self.device)
        res.c = int(max(map(np.max, self.ys)))+1
        return res
