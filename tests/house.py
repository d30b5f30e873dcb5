"Where things are, and how to run something in a fresh interpreter: shared by the tests of the house."
import ast,json,os,subprocess,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs,package = root/'nbs',root/'fastmix'
by_hand = {'__init__', 'all', 'callback', 'hidden', '_docs', '_modidx'}  # modules that come from no notebook

def notebooks(): return sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))
def name(nb): return nb.relative_to(nbs).with_suffix('').as_posix()
def load(nb): return json.loads(nb.read_text(encoding='utf-8'))
def text(o): return o if isinstance(o, str) else ''.join(o)

def directives(cell):
    "The `#|` lines at the head of a cell, as a dict of name → argument"
    res = {}
    for l in text(cell['source']).splitlines():
        if not l.startswith('#|'): break
        k,_,v = l[2:].strip().replace(':', ' ', 1).partition(' ')
        res[k] = v.strip()
    return res

def module_of(nb):
    "Name of the module that a notebook exports to, or None"
    for c in load(nb)['cells']:
        if 'default_exp' in directives(c): return directives(c)['default_exp']

def exports(cell): return cell['cell_type']=='code' and bool({'export','exports','exporti'} & set(directives(cell)))

def patched(nb):
    "`Class.method` for each public method that a notebook patches into a class; `#| exporti` and `#| hide` are for those that are nobody's business"
    for c in load(nb)['cells']:
        if not exports(c) or {'exporti','hide'} & set(directives(c)): continue
        for o in ast.parse(text(c['source'])).body:
            if isinstance(o, ast.FunctionDef) and o.name[0]!='_' and any(ast.unparse(d).startswith('patch') for d in o.decorator_list):
                yield f'{ast.unparse(o.args.args[0].annotation)}.{o.name}'

def modules(): return {m: nb for nb in notebooks() if (m := module_of(nb))}

def python(code, *args, cwd=root, timeout=600, env=None):
    "Run `code` in a fresh interpreter; returns the finished process with `stdout` and `stderr` as text"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root), **(env or {})}
    env.pop('IN_TEST', None)
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], cwd=cwd, timeout=timeout, env=env,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
