"""Whether servers answer: all are asked at once, and none is waited for longer than a moment."""

import threading
from collections.abc import Iterable, Mapping

import httpx
from huggingface_hub import constants

_SECONDS = 3.0


Answers = Mapping[str, httpx.Response | None]


def answers_of(urls: Iterable[str]) -> Answers:
    """What each address answers within three seconds; None is no answer.

    Any answer counts, an error of the server too: something is there.
    """
    found: dict[str, httpx.Response | None] = dict.fromkeys(urls)

    def ask(url: str) -> None:
        try:
            found[url] = httpx.get(url, timeout=_SECONDS, follow_redirects=True)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            pass  # nothing is there

    # Daemons: a name that takes long to resolve keeps nobody waiting, nor the process alive.
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
    return dict(found)


def hub_urls() -> set[str]:
    """The hub's address; none where it may not be asked."""
    return set() if constants.HF_HUB_OFFLINE else {f"{constants.ENDPOINT}/api/models?limit=1"}
