"""Conversations made to fit a chat template.

    fitted = fit(model.chat_template, messages, tools, form=form_of(model.chat_template))
    prompt = fitted.render(model.chat_template, enable_thinking=False)

abilities.py   what a template can express, found out by trying: `Abilities`
fitting.py     messages in OpenAI's form as the template wants them: `fit`
telling.py     tools told in a system message, where the template has no place for them
beginning.py   replies that go on with what has been said
"""

from ikq.errors import TemplateLimit
from ikq.text.templates.abilities import Abilities, abilities_of
from ikq.text.templates.fitting import Fitted, fit

__all__ = ["Abilities", "Fitted", "TemplateLimit", "abilities_of", "fit"]
