// The server's API, as far as the page needs it.

import { EventParser } from "./sse.js";

export async function listModels(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) throw new Error(await errorOf(response));
  return (await response.json()).data.map(model => model.id);
}

// Asks for a reply; `onPiece({ content, reasoning })` gets each new part. Returns what the server said of tokens
// and why the reply ended.
export async function ask(request, key, signal, onPiece) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw new Error(await errorOf(response));
  const end = {};
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return end;
    const said = JSON.parse(data);
    if (said.error) throw new Error(said.error.message);
    if (said.usage) end.usage = said.usage;
    const choice = said.choices?.[0];
    if (choice?.finish_reason) end.reason = choice.finish_reason;
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (content || reasoning) onPiece({ content: content ?? "", reasoning: reasoning ?? "" });
  }
  throw new Error("The reply broke off.");
}

async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield* parser.push(decoder.decode(value, { stream: true }));
  }
}

const headers = key => (key ? { authorization: `Bearer ${key}` } : {});

async function errorOf(response) {
  let sentence = `${response.status} ${response.statusText}`;
  try {
    sentence = (await response.json()).error.message;
  } catch {
    // no JSON: something between the page and the server answered
  }
  const wait = response.headers.get("retry-after");
  return wait ? `${sentence} (try again in ${wait} s)` : sentence;
}
