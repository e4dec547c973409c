// Markdown as a tree: texts, and nodes { tag, children, and perhaps href, text or start }. There is no HTML in
// it: what looks like HTML is text. Whoever shows the tree makes elements of these tags and no others:
// p h1..h6 ul ol li blockquote hr pre code strong em del a br table tr th td.

// How deep quotes, lists and emphasis may be inside one another; what is deeper stays text.
const DEEPEST = 12;

export function parseMarkdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

// Addresses that a link may have: nothing that a click could run.
export function safeAddress(address) {
  const plain = address.trim().replace(/[\u0000-\u0020\u007f-\u009f\u200b-\u200f\u2028-\u202e\ufeff]/g, "");
  return /^(https?:\/\/|mailto:)/i.test(plain) ? plain : null;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_LINE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (line.trim() === "") { at++; continue; }
    const taken = fence(lines, at, nodes) || heading(line, nodes) || rule(line, nodes)
      || (depth < DEEPEST && (quote(lines, at, nodes, depth) || list(lines, at, nodes, depth)))
      || table(lines, at, nodes) || paragraph(lines, at, nodes);
    at += taken;
  }
  return nodes;
}

function fence(lines, at, nodes) {
  const opened = FENCE.exec(lines[at]);
  if (!opened) return 0;
  const mark = opened[1];
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], mark)) end++;
  nodes.push({ tag: "pre", text: opened[2], children: [lines.slice(at + 1, end).join("\n")] });
  return Math.min(end + 1, lines.length) - at;
}

function closes(line, mark) {
  const plain = line.trim();
  return plain.length >= mark.length && plain === mark[0].repeat(plain.length);
}

function heading(line, nodes) {
  const found = HEADING.exec(line);
  if (!found) return 0;
  const text = (found[2] ?? "").trim().replace(/(^|[ \t])#+$/, "").trim();
  nodes.push({ tag: "h" + found[1].length, children: inline(text) });
  return 1;
}

function rule(line, nodes) {
  if (!RULE.test(line)) return 0;
  nodes.push({ tag: "hr", children: [] });
  return 1;
}

function quote(lines, at, nodes, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  if (end === at) return 0;
  const inner = lines.slice(at, end).map(line => line.replace(/^ {0,3}> ?/, ""));
  nodes.push({ tag: "blockquote", children: blocks(inner, depth + 1) });
  return end - at;
}

function list(lines, at, nodes, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first || RULE.test(lines[at])) return 0;
  const ordered = /\d/.test(first[2]);
  const mark = first[2].at(-1);
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[2].at(-1) !== mark || RULE.test(lines[end])) break;
    const width = item[0].length;
    const inner = [lines[end].slice(width)];
    end++;
    while (end < lines.length && (indented(lines[end], width) || continued(lines, end))) {
      inner.push(lines[end].slice(Math.min(width, spaces(lines[end]))));
      end++;
    }
    const blank = trailingBlanks(inner);
    if (inner.slice(0, inner.length - blank).some(line => line.trim() === "")
        || (blank && end < lines.length && ITEM.exec(lines[end])?.[2].at(-1) === mark)) loose = true;
    items.push(blocks(inner, depth + 1));
  }
  nodes.push({
    tag: ordered ? "ol" : "ul",
    ...(ordered ? { start: Number.parseInt(first[2], 10) } : {}),
    children: items.map(children => ({ tag: "li", children: loose ? children : tight(children) })),
  });
  return end - at;
}

const spaces = line => /^ */.exec(line)[0].length;

const indented = (line, width) => line.trim() === "" || spaces(line) >= Math.min(width, 2);

// A line that goes on with the paragraph of an item, though it is not indented.
const continued = (lines, at) => lines[at - 1].trim() !== "" && !begins(lines[at]);

const begins = line => [FENCE, HEADING, RULE, QUOTE, ITEM].some(form => form.test(line));

function trailingBlanks(lines) {
  let n = 0;
  while (n < lines.length && lines[lines.length - 1 - n].trim() === "") n++;
  return n;
}

// Items of one line each need no paragraphs.
const tight = children => children.flatMap(child => (child.tag === "p" ? child.children : [child]));

function table(lines, at, nodes) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !TABLE_LINE.test(lines[at + 1])) return 0;
  const head = cells(lines[at]);
  if (head.length !== cells(lines[at + 1]).length) return 0;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim() !== "") end++;
  const row = (tag, texts) => ({
    tag: "tr", children: head.map((_, n) => ({ tag, children: inline(texts[n] ?? "") })),
  });
  const body = lines.slice(at + 2, end).map(line => row("td", cells(line)));
  nodes.push({ tag: "table", children: [row("th", head), ...body] });
  return end - at;
}

function cells(line) {
  const plain = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return plain.split(/(?<!\\)\|/).map(cell => cell.trim().replace(/\\\|/g, "|"));
}

function paragraph(lines, at, nodes) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && !begins(lines[end])) end++;
  nodes.push({ tag: "p", children: inline(lines.slice(at, end).join("\n").trim()) });
  return end - at;
}

// Texts and nodes inside a line.
function inline(text, depth = 0) {
  const nodes = [];
  const say = part => {
    if (typeof part === "string" && typeof nodes.at(-1) === "string") nodes[nodes.length - 1] += part;
    else nodes.push(part);
  };
  const missing = new Set();
  let at = 0;
  while (at < text.length) {
    const [node, length] = special(text, at, depth, missing);
    say(node);
    at += length;
  }
  return nodes;
}

// What nothing special begins in: spaces belong to it unless a line ends after them.
const PLAIN = /(?:[^\\`*_~[!<h\n ]| (?! {0,9}\n))+|[^]/y;

function special(text, at, depth, missing) {
  const found = depth < DEEPEST && (
    escaped(text, at) || code(text, at, missing) || link(text, at, depth, missing) || address(text, at)
    || emphasis(text, at, depth, missing) || lineBreak(text, at));
  if (found) return found;
  PLAIN.lastIndex = at;
  // a run of marks that is none is text as a whole
  const run = /^([`*_~])\1*/.exec(text.slice(at, at + 80));
  const plain = run ? run[0] : PLAIN.exec(text)[0];
  return [plain, plain.length];
}

function escaped(text, at) {
  if (text[at] !== "\\" || at + 1 >= text.length) return null;
  if (text[at + 1] === "\n") return [{ tag: "br", children: [] }, 2];
  return /[!-/:-@[-`{-~]/.test(text[at + 1]) ? [text[at + 1], 2] : null;
}

function code(text, at, missing) {
  if (text[at] !== "`") return null;
  let n = 1;
  while (text[at + n] === "`") n++;
  const mark = "`".repeat(n);
  if (missing.has(mark)) return null;
  for (let end = text.indexOf(mark, at + n); end >= 0; end = text.indexOf(mark, end)) {
    let length = n;
    while (text[end + length] === "`") length++;
    if (length === n) {
      const inner = text.slice(at + n, end).replace(/\n/g, " ");
      const bare = inner.length > 2 && inner[0] === " " && inner.at(-1) === " " && inner.trim() ? inner.slice(1, -1) : inner;
      return [{ tag: "code", children: [bare] }, end + n - at];
    }
    end += length;
  }
  missing.add(mark);
  return null;
}

const LINK_END = /\]\([ \t]*(?:<([^<>\n]{0,2000})>|([^\s()<>]{0,2000}(?:\([^\s()<>]{0,2000}\)[^\s()<>]{0,2000})?))(?:[ \t]+(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?[ \t]*\)/y;

function link(text, at, depth, missing) {
  // an image is a link: pictures from elsewhere are not loaded
  const start = text[at] === "!" && text[at + 1] === "[" ? at + 1 : at;
  if (text[start] !== "[" || missing.has("]")) return null;
  if (text.indexOf("](", start) < 0) { missing.add("]"); return null; }
  let level = 0;
  for (let end = start; end < Math.min(text.length, start + 500); end++) {
    if (text[end] === "\\") { end++; continue; }
    if (text[end] === "[") level++;
    if (text[end] !== "]" || --level > 0) continue;
    LINK_END.lastIndex = end;
    const found = LINK_END.exec(text);
    if (!found) return null;
    const href = safeAddress(found[1] ?? found[2]);
    const label = inline(text.slice(start + 1, end), depth + 1).filter(part => part.tag !== "a");
    const shown = label.length ? label : [href ?? ""];
    const length = end + found[0].length - at;
    // an address that is not safe is not followed, but nothing of it is hidden
    return href === null ? [text.slice(at, at + length), length] : [{ tag: "a", href, children: shown }, length];
  }
  return null;
}

const ADDRESS = /<(https?:\/\/[^\s<>]{1,2000})>|https?:\/\/[^\s<>`"*]{1,2000}/iy;

function address(text, at) {
  if (text[at] !== "<" && text[at] !== "h") return null;
  if (text[at] === "h" && at > 0 && /\w/.test(text[at - 1])) return null;
  ADDRESS.lastIndex = at;
  const found = ADDRESS.exec(text);
  if (!found) return null;
  if (found[1]) return [{ tag: "a", href: found[1], children: [found[1]] }, found[0].length];
  let plain = found[0].replace(/[.,;:!?'"_~\]]+$/, "");
  if (plain.endsWith(")") && !plain.includes("(")) plain = plain.slice(0, -1);
  return /:\/\/\w/.test(plain) ? [{ tag: "a", href: plain, children: [plain] }, plain.length] : null;
}

const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

function emphasis(text, at, depth, missing) {
  if (!"*_~".includes(text[at])) return null;
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, at) || missing.has(mark)) continue;
    const inside = at + mark.length;
    if (inside >= text.length || /\s/.test(text[inside]) || (mark[0] === "_" && at > 0 && /\w/.test(text[at - 1]))) continue;
    const end = closing(text, inside, mark);
    if (end < 0) { missing.add(mark); continue; }
    return [{ tag, children: inline(text.slice(inside, end), depth + 1) }, end + mark.length - at];
  }
  return null;
}

// Where the mark that ends an emphasis is.
function closing(text, from, mark) {
  const single = mark.length === 1;
  for (let at = from; at < text.length; at++) {
    if (text[at] === "\\") { at++; continue; }
    if (text[at] === "`") {
      const end = text.indexOf("`", at + 1);
      if (end > 0) at = end;
      continue;
    }
    if (!text.startsWith(mark, at)) continue;
    if (single && text[at + 1] === mark) {
      // "**" inside "*...*": a strong part, as a whole
      const end = text.indexOf(mark + mark, at + 2);
      if (end > 0) { at = end + 1; continue; }
    }
    if (at > from && !/\s/.test(text[at - 1]) && !(mark[0] === "_" && /\w/.test(text[at + mark.length] ?? ""))) {
      // of "***" the last ones close the outer mark
      while (!single && text[at + 2] === mark[0]) at++;
      return at;
    }
  }
  return -1;
}

function lineBreak(text, at) {
  const found = text[at] === "\n" || text[at] === " " ? /^ {2,}\n/.exec(text.slice(at, at + 40)) : null;
  return found ? [{ tag: "br", children: [] }, found[0].length] : null;
}
