"What the methods should give, slowly and obviously: one sample, or one pixel, at a time."
import math
import torch, torch.nn.functional as F

def mask_of(plan):
    "A plan's mask as a tensor on the CPU"
    return plan.mask.on('cpu') if hasattr(plan.mask, 'on') else torch.as_tensor(plan.mask)

def slow_sample(x, s, plan, i):
    "Sample `x` (c,...) mixed with its partner `s`, one step at a time, in double precision"
    w = float(plan.weight[i])
    out = x.clone() if w==1 else w*x + (1-w)*s
    if plan.box is not None and all(b>a for a,b in plan.box[i]):
        box = (slice(None), *(slice(a,b) for a,b in plan.box[i]))
        lengths = tuple(int(b-a) for a,b in plan.box[i])
        linear = {1:'linear', 2:'bilinear', 3:'trilinear'}[len(lengths)]
        out[box] = F.interpolate(s[None], lengths, mode=linear)[0] if plan.resize else s[box]
    if plan.mask is not None: out = x + mask_of(plan)[min(i, len(mask_of(plan))-1)].double()*(s-x)
    return out

def slow(x, plan, source=None):
    x,source = x.double(),x.double() if source is None else source.double()
    return torch.stack([slow_sample(x[i], source[int(plan.idx[i])], plan, i) for i in range(len(x))])

def slow_move(y, plan, source=None):
    "One sample at a time; in a shrunk box, one pixel at a time"
    out,source = y.clone(),y if source is None else source
    for i in range(len(y)):
        s = source[int(plan.idx[i])]
        if plan.mask is not None: out[i] = torch.where(mask_of(plan)[min(i, len(mask_of(plan))-1),0], s, y[i])
        elif plan.resize:
            (a,b),(c,d) = plan.box[i]
            for p in range(a,b):
                for q in range(c,d): out[i,p,q] = s[math.floor((p-a+.5)*s.shape[0]/(b-a)), math.floor((q-c+.5)*s.shape[1]/(d-c))]
        else:
            (a,b),(c,d) = plan.box[i]
            out[i,a:b,c:d] = s[a:b,c:d]
    return out
