"""A denoiser on another machine gives what the local one gives, whatever becomes of a server."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles import WordDenoiser
from loopback import loopback
from test_diffusion_infill import ROWS, compile_with
from tiny_denoisers import MASK_ID, save_published

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")
from served import TOKEN, served

from dspy_diffusion_infill import load_denoiser
from dspy_diffusion_infill.denoisers import InfillRequest, Sampling, ScoreRequest, SharedContext
from dspy_diffusion_infill.denoisers.remote import wire
from dspy_diffusion_infill.errors import ContextTooLongError, DenoiserError

TEXT = tuple(range(40, 60))
CONTEXT = SharedContext(TEXT, 4, 12)
SAMPLINGS = [
    Sampling(steps=3),
    Sampling(steps=8, temperature=0.0, cache="window"),
    Sampling(steps=4, temperature=1.5, top_p=0.9, block_length=3, cache="context"),
    Sampling(steps=4, cache="around", max_drift=0.05),
]


def requests(number: int, *, seed: int = 0) -> list[InfillRequest]:
    ids = [*TEXT[:5], *[MASK_ID] * 4, *TEXT[9:]]
    return [InfillRequest(ids, 2**70 + seed + k, CONTEXT) for k in range(number)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return load_denoiser(save_published(folder / "llada", "llada", max_sequence_length=1024))


@pytest.fixture(scope="module")
def pair(local):
    with served(local) as one, served(local) as two:
        yield one, two


@pytest.fixture
def remote(pair):
    loaded = load_denoiser(pair[0].url, token=TOKEN)
    yield loaded
    loaded.close()


def test_it_says_of_itself_what_the_local_one_says(local, remote):
    for name in ("name", "context_length", "mask_id"):
        assert getattr(remote, name) == getattr(local, name)


def test_texts_are_what_the_local_one_makes_of_them(local, remote):
    messages = [{"role": "user", "content": "naïve 日本 <|unused|>\n"}]
    text = local.render(messages)
    encoding = local.encode(text)
    assert remote.render(messages) == text
    assert remote.encode(text) == encoding
    assert remote.decode(encoding.input_ids) == local.decode(encoding.input_ids)
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        remote.encode("\ud800")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_seed_gives_the_same_tokens_passes_and_confidence(local, remote, sampling):
    local.infill(requests(1), sampling)  # from now on, a context is kept
    before = local.num_passes
    expected = local.infill(requests(5), sampling)
    num_passes = local.num_passes - before
    assert remote.infill(requests(5), sampling) == expected
    assert remote.num_passes == num_passes


def test_log_probabilities_are_the_same_to_the_last_bit(local, remote):
    ids = requests(1)[0].input_ids
    asked = [ScoreRequest(ids, (1, 2, 3, 4)), ScoreRequest(ids, (5, 6, 7, 8), CONTEXT)]
    assert remote.score(asked) == local.score(asked)
    assert remote.score([]) == remote.infill([], Sampling()) == []


def test_errors_are_those_of_the_local_one(local, remote):
    for one in (local, remote):
        with pytest.raises(ContextTooLongError, match="2000 tokens do not fit the 1024 of"):
            one.infill([InfillRequest([1] * 2000)], Sampling())
        with pytest.raises(ValueError, match="one target for each masked place, got 1 targets"):
            one.score([ScoreRequest([MASK_ID, MASK_ID], [1])])
        with pytest.raises(ValueError, match=r"token ids must be in 0\.\.\d+, got 10\.\.100000"):
            one.score([ScoreRequest([MASK_ID, MASK_ID], [10, 100000])])


def test_a_whole_compile_gives_the_same_trials(local, pair, monkeypatch):
    monkeypatch.setenv("DSPY_INFILL_TOKEN", TOKEN)
    monkeypatch.setenv("DSPY_INFILL_MODEL", pair[0].url)
    remote = load_denoiser()
    options = {"window": 24, "stride": 24, "mask": 6, "num_proposals": 3, "sweeps": 1, "seed": 5}
    options |= {"filters": False, "sampling": Sampling(steps=4), "rows": ROWS[:4]}
    here, there = (
        compile_with(denoiser=one, guidance="auto", **options).detailed_results
        for one in (local, remote)
    )
    remote.close()
    assert len(here.trials) > 3
    assert there.trials == here.trials
    assert there.counts == here.counts
    assert there.scores_after == here.scores_after


# Servers that fail


def tokens(results) -> list[tuple[int, ...]]:
    """Without the confidence, which depends on the batch by rounding."""
    return [one.input_ids for one in results]


def test_a_replica_that_dies_loses_nothing(local):
    """8 clients, each with a connection of its own; one server is cut off under way."""
    asked = [requests(3, seed=10 * k) for k in range(24)]
    expected = [tokens(local.infill(some, SAMPLINGS[0])) for some in asked]
    begun = threading.Event()

    def ask(client: int) -> list:
        one = load_denoiser([first.url, second.url], token=TOKEN)
        found = []
        for k in range(client, len(asked), 8):
            found.append((k, tokens(one.infill(asked[k], SAMPLINGS[0]))))
            begun.set()
        one.close()
        return found

    with served(local) as first, served(local) as second, ThreadPoolExecutor(8) as threads:
        running = [threads.submit(ask, client) for client in range(8)]
        begun.wait(60)
        first.cut_off()
        found = sorted(pair for one in running for pair in one.result())
    assert found == list(enumerate(expected)), "all are answered, and none twice"


def test_a_server_that_is_busy_is_asked_again():
    with served(WordDenoiser(), waiting=1) as one, ThreadPoolExecutor(8) as threads:
        remote = load_denoiser(one.url, token=TOKEN)
        texts = [f"text {k}" for k in range(24)]
        found = list(threads.map(remote.encode, texts))
        remote.close()
    assert [len(encoding.input_ids) for encoding in found] == [2] * 24


def failure(*urls: str, token: str | None = TOKEN, **options) -> str:
    with pytest.raises((DenoiserError, ValueError)) as caught:
        load_denoiser(urls, token=token, **options)
    return str(caught.value)


def test_a_wrong_or_missing_token_is_named(pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DSPY_INFILL_TOKEN", raising=False)
    for token in (None, "another-token-of-16"):
        assert "refuses the token: give token=, or set DSPY_INFILL_TOKEN" in failure(
            pair[0].url, token=token
        )
    assert "token must be at least 16" in failure(pair[0].url, token="short")


def test_a_server_of_another_version_is_named(pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "VERSION", 99)
    assert "speaks version 99" in failure(pair[0].url)


def test_servers_of_different_denoisers_are_not_mixed(pair):
    with served(WordDenoiser()) as other:
        assert "must serve one denoiser" in failure(pair[0].url, other.url)


def test_nobody_and_somebody_else_are_named(tmp_path: Path):
    with served(WordDenoiser()) as gone:
        pass
    assert f"{gone.url} cannot be reached" in failure(gone.url)
    with loopback(lambda number, body: "hello") as other:
        assert "is no `dspy-infill serve`" in failure(other.url)


@pytest.mark.parametrize(
    "url", ["http://", "ftp://a", "http://a:x", "http://a?b=1", "http://u:p@a", "a"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="must have an address such as"):
        load_denoiser(["http://127.0.0.1:1", url])


def test_what_a_server_decided_is_not_asked_of_the_client():
    assert "was given device, dtype" in failure("http://127.0.0.1:1", device="cpu")
