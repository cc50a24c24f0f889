import pytest

from tools.lock import locked


def package(name: str, **archive: object) -> dict:
    info = {"url": "https://index.example/x.whl", "archive_info": archive}
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": info}


def test_a_lock_has_versions_and_hashes_by_name_and_no_address():
    report = {"install": [package(name, hashes={"sha256": "ab"}) for name in ("Zeta", "alpha")]}
    head, use, *lines = locked(report).splitlines()
    assert head.startswith("# Written by `make lock`") and "--require-hashes" in use
    assert lines == ["alpha==1.0 --hash=sha256:ab", "zeta==1.0 --hash=sha256:ab"]


def test_a_package_without_a_hash_is_refused():
    with pytest.raises(ValueError, match=r"alpha==1\.0 must be a file with a sha256"):
        locked({"install": [package("alpha")]})
