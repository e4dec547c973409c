// What a conversation looks like: elements are made one by one, texts are only ever texts.

import { parseMarkdown, safeAddress } from "./markdown.js";

const TAGS = new Set(["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "pre", "code",
  "strong", "em", "del", "a", "br", "table", "tr", "th", "td"]);

export function element(tag, { className, text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function showMarkdown(text) {
  const shown = document.createDocumentFragment();
  shown.append(...parseMarkdown(text).map(toElement));
  return shown;
}

function toElement(node) {
  if (typeof node === "string") return document.createTextNode(node);
  if (!TAGS.has(node.tag)) return document.createTextNode("");
  if (node.tag === "pre") return codeBlock(node);
  const made = element(node.tag);
  if (node.tag === "a") {
    made.href = safeAddress(node.href) ?? "#";
    made.target = "_blank";
    made.rel = "noopener noreferrer nofollow";
  }
  if (node.tag === "ol" && node.start !== 1) made.start = node.start;
  made.append(...node.children.map(toElement));
  return node.tag === "table" ? element("div", { className: "scroll", tabindex: "0" }, made) : made;
}

function codeBlock(node) {
  const code = element("code", { text: node.children[0] });
  const head = element("div", { className: "code-head" }, element("span", { text: node.text || "text" }),
    ...copyButton(() => code.textContent));
  return element("div", { className: "code" }, head, element("pre", { tabindex: "0" }, code));
}

// A button that copies, where the browser lets pages do so.
function copyButton(text) {
  if (!navigator.clipboard) return [];
  const button = element("button", { type: "button", className: "quiet", text: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return [button];
}

// A turn with its buttons. `acts` has `edit(text)` for the user's, `again()` for the last reply.
export function showTurn(turn, acts) {
  const isUser = turn.role === "user";
  const article = element("article", { className: turn.role, "aria-label": isUser ? "You" : "Reply" });
  const body = element("div", { className: "body" });
  article.append(body);
  if (isUser) body.append(element("p", { className: "said", text: turn.content }));
  else fillReply(body, turn);
  const buttons = element("div", { className: "acts" });
  const button = (text, onclick) => element("button", { type: "button", className: "quiet", text, onclick });
  if (acts.edit) buttons.append(button("Edit", () => editIn(article, turn, acts.edit)));
  if (acts.again) buttons.append(button("Regenerate", acts.again));
  if (!isUser && turn.content) buttons.append(...copyButton(() => turn.content));
  article.append(buttons);
  return article;
}

// Shows a reply as far as it is there. Thoughts stay folded or unfolded as they are.
export function fillReply(body, turn) {
  let thoughts = body.querySelector("details");
  if (turn.reasoning && !thoughts) {
    thoughts = element("details", {}, element("summary", { text: "Thoughts" }), element("div"));
    body.prepend(thoughts);
  }
  if (turn.reasoning) thoughts.lastElementChild.replaceChildren(showMarkdown(turn.reasoning));
  let text = body.querySelector(":scope > .text");
  if (!text) body.append(text = element("div", { className: "text" }));
  text.replaceChildren(showMarkdown(turn.content));
  if (turn.error) text.append(element("p", { className: "error", role: "alert", text: turn.error }));
}

function editIn(article, turn, done) {
  const label = element("label", { className: "hidden", for: "edited", text: "Your message" });
  const field = element("textarea", { id: "edited", rows: "3" });
  field.value = turn.content;
  const form = element("form", { className: "edit" }, label, field,
    element("button", { type: "submit", text: "Send" }),
    element("button", { type: "button", className: "quiet", text: "Cancel", onclick: () => form.replaceWith(...shown) }));
  const shown = [...article.childNodes];
  form.addEventListener("submit", event => {
    event.preventDefault();
    if (field.value.trim()) done(field.value);
  });
  article.replaceChildren(form);
  field.focus();
}
