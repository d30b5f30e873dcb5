"""What the documentation needs from us: processors for nbdev's pages, `README.md` from `nbs/index.ipynb` without Quarto, and `nbs/llms.txt`,
the list of pages for language models ([llmstxt.org](https://llmstxt.org)).

Run `python -m fastmix._docs` after changing `nbs/index.ipynb`, `nbs/sidebar.yml` or the head of a page."""
import base64,json,re
from pathlib import Path

def drop_timing(cell):
    "An nbdev `doc_procs` processor: timings in a cell's metadata make its API heading vanish from \"On this page\""
    cell.get('metadata', {}).pop('execution', None)

def drop_private_links(cell):
    "An nbdev `doc_procs` processor: names that begin with `_` have no API heading, so nothing to link to"
    if cell['cell_type']=='markdown': cell['source'] = re.sub(r'\[(`_\w+(?:\(\))?`)\]\([^)]*\)', r'\1', cell['source'])

_NAME = r'\[(?P<name>`[^`\n]+`)\]\([^)\s]*\)'     # a name that nbdev has made a link
_TEXT = re.compile(r'(?<=\[)(?:[^\[\]\n]|' + _NAME + r')+(?=\]\()')

def drop_nested_links(cell):
    "An nbdev `doc_procs` processor: a name in the text of a link is no link of its own, which would break both"
    if cell['cell_type']=='markdown': cell['source'] = _TEXT.sub(lambda m: re.sub(_NAME, r'\g<name>', m[0]), cell['source'])

_FOREIGN = re.compile(r"((?:fastai|timm|torchvision|Composer|PyTorch|keras|OpenMixup)(?:'s|’s)(?: own)? )"+_NAME)

def drop_foreign_links(cell):
    "An nbdev `doc_procs` processor: \"fastai's `MixUp`\" is not ours, so it leads to no page of ours"
    if cell['cell_type']=='markdown': cell['source'] = _FOREIGN.sub(lambda m: m[1]+m['name'] if 'fastmix' in m[0] else m[0], cell['source'])

def drop_main(cell):
    "An nbdev `doc_procs` processor: a type that a page itself defines is called by its name in a signature, and not `__main__.Plan`"
    for data in (o.get('data', {}) for o in cell.get('outputs', [])):
        if 'text/markdown' in data: data['text/markdown'] = [_text(data['text/markdown']).replace('__main__.', '')]

class drop_twins:
    "An nbdev `doc_procs` processor: what a page shows under a name of its choice, as `EMA.averaged`, is not shown as `averaged` too"
    def __init__(self, nb): self.nb = nb
    def begin(self):
        named = {m[1] for c in self.nb.cells if (m := re.search(r'^show_doc\(([\w.]+), name=', c['source'], flags=re.M))}
        self.nb.cells = [c for c in self.nb.cells if not c['source'].endswith(tuple(f'show_doc({o})' for o in named))]

class fold_solutions:
    "An nbdev `doc_procs` processor: a code cell with `#| solution: N` stands in a folded box, its output too"
    def __init__(self, nb): self.nb = nb
    def begin(self):
        from fastcore.nbio import mk_cell
        cells = []
        for c in self.nb.cells:
            what = c.directives_.get('solution') if c['cell_type']=='code' else None
            if what is None: cells.append(c)
            else:
                c['source'] = re.sub(r'^#\| solution:.*\n', '', c['source'])
                head = f'::: {{.callout-tip collapse="true" title="Solution of exercise {what}"}}'
                cells += [mk_cell(head, 'markdown'), c, mk_cell(':::', 'markdown')]
                for o in cells[-3], cells[-1]: o.directives_ = {}
        self.nb.cells = cells

def _text(o): return o if isinstance(o, str) else ''.join(o)

def _split(source):
    "The `#|` directives at the head of a cell, and the rest"
    lines,n = source.splitlines(),0
    while n<len(lines) and lines[n].startswith('#|'): n += 1
    return {l[2:].strip() for l in lines[:n]}, '\n'.join(lines[n:]).strip('\n')

def _link(url, site):
    "A link that holds beside `nbs/index.ipynb`, as one that holds in `README.md`"
    if re.match(r'\w+:|#|/', url): return url
    page,_,part = url.partition('#')
    if page.endswith('.ipynb'):
        page = re.sub(r'(^|/)\d+[a-zA-Z0-9]*_([^/]*)$', r'\1\2', page.lower())[:-len('.ipynb')]+'.html'
        return f"{site}/{page}{'#'+part if part else ''}"
    return url[3:] if url.startswith('../') else 'nbs/'+url

def _markdown(source, site):
    "Markdown with its links turned, code blocks left alone"
    parts = re.split(r'(^```.*?^```[ ]*$)', source, flags=re.M|re.S)
    return ''.join(p if i%2 else re.sub(r'(\]\()([^)\s]+)', lambda m: m[1]+_link(m[2], site), p) for i,p in enumerate(parts))

def _words(dirs, key):
    "The text of a cell's `#| key: text`"
    return next((o.partition(':')[2].strip().strip('"') for o in dirs if o.startswith(key+':')), '')

def _outputs(cell, files, site='', alt='', caption=''):
    "A code cell's outputs as markdown, with the tables of HTML ones; pictures are added to `files`, a name → bytes dict"
    for i,o in enumerate(cell.get('outputs', [])):
        data = o.get('data', {})
        picture = next((k for k in ('image/png', 'image/jpeg') if k in data), None)
        if picture:
            name = f"index_files/{cell['id']}-{i}.{dict(png='png', jpeg='jpg')[picture[6:]]}"
            files[name] = base64.b64decode(_text(data[picture]))
            yield f'![{alt}]({name})'
            if caption: yield f'*{caption}*'
        elif 'text/html' in data: yield from re.findall(r'<table\b.*?</table>', _text(data['text/html']), flags=re.S)
        elif 'text/markdown' in data: yield _markdown(_text(data['text/markdown']).strip('\n'), site)
        else:
            text = _text(o.get('text') or data.get('text/plain', '')).rstrip()
            if text: yield '\n'.join('    '+l if l else l for l in text.splitlines())

def readme(
    nb,   # The notebook, as the dictionary that its JSON holds
    site  # Address of the documentation, for links to other notebooks
): # The text of `README.md`, and its pictures as a dict of name → bytes
    "`README.md` from the notebook that is the documentation's home page"
    res,files = [],{}
    for cell in nb['cells']:
        dirs,src = _split(_text(cell['source']))
        if dirs & {'hide', 'include: false'} or cell['cell_type']=='raw' or not src: continue
        if cell['cell_type']=='markdown': res.append(_markdown(src, site))
        else:
            if 'echo: false' not in dirs: res.append(f'```python\n{src}\n```')
            if 'output: false' not in dirs: res.extend(_outputs(cell, files, site, _words(dirs, 'fig-alt'), _words(dirs, 'fig-cap')))
    note = '<!-- Written from nbs/index.ipynb by `python -m fastmix._docs`: edit the notebook -->'
    return '\n\n'.join([res[0], note, *res[1:]])+'\n', files

def _pages(contents, section=''):
    "`(section, page)` for each entry of a sidebar"
    for o in contents:
        if isinstance(o, dict) and 'href' in o: yield section,o['href']
        elif isinstance(o, dict): yield from _pages(o.get('contents', []), o.get('section', section))
        else: yield section,o

def llms(
    nbs,  # The folder of notebooks, with `sidebar.yml`
    cfg   # nbdev's settings
): # The text of `llms.txt`
    "The pages in the order of the sidebar, each with its title, its summary and the address of its markdown"
    import yaml
    sidebar = yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    res,last = [f'# {cfg.title}', '', f'> {cfg.description}', ''],''
    for section,page in _pages(sidebar):
        head = _text(json.loads((nbs/page).read_text(encoding='utf-8'))['cells'][0]['source'])
        title,summary = re.match(r'# ([^\n]+)\n+> ([^\n]+)', head).groups()
        if section!=last: res += ['', f'## {section}', '']
        last = section
        res.append(f'- [{title}]({_link(page, cfg.doc_url)}.md): {summary}')
    return '\n'.join(res)+'\n'

def write_pages(root='.'):
    "Write `nbs/llms.txt`, and `README.md` and its pictures, under `root`, the repository"
    from nbdev.config import get_config
    root,cfg = Path(root).resolve(),get_config(root)
    (root/'nbs/llms.txt').write_text(llms(root/'nbs', cfg), encoding='utf-8')
    nb = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))
    text,files = readme(nb, cfg.doc_url)
    (root/'README.md').write_text(text, encoding='utf-8')
    for old in root.glob('index_files/*.*'): old.unlink()
    for name,data in files.items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)

if __name__=='__main__': write_pages()
