"""Reports of `verify`, which are stored next to the manifest and do not change the bundle."""

import json
from pathlib import Path

import pytest

from e3d_deploy.bundle.folder import Bundle, record_verification, verifications
from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.bundle.pack import pack
from e3d_deploy.inspect import Verified, inspect_bundle
from tests.manifests import rewrite
from tests.tools import e3d

PASSED = {"backend": "onnxruntime", "yardstick": "torch", "passed": True, "worst": 1e-7}


def test_a_bundle_is_packed_to_the_same_bytes_before_and_after_verify(bundle_path: Path, tmp_path: Path) -> None:
    before = pack(Bundle.open(bundle_path), tmp_path / "before.zip").read_bytes()
    result = e3d("verify", bundle_path, "--backend", "torch", "--json")
    assert pack(Bundle.open(bundle_path), tmp_path / "after.zip").read_bytes() == before
    written = json.loads((bundle_path / "verify.json").read_text())
    report = json.loads(result.stdout)
    assert written["reports"]["torch"] == {
        name: value for name, value in report.items() if name not in ("choice", "computed")
    }
    assert written["bundle"] == Bundle.open(bundle_path).digest


def test_inspect_reads_the_report_in_verify_json(bundle_path: Path) -> None:
    record_verification(Bundle.open(bundle_path), PASSED)
    found = inspect_bundle(bundle_path).verified
    assert found == {"onnxruntime": Verified(against="torch", largest_difference=1e-7, passed=True)}


def test_reports_of_older_versions_are_read_from_the_manifest(bundle_path: Path) -> None:
    old = {"onnxruntime": Verification(passed=False), "openvino": Verification(passed=True)}
    rewrite(bundle_path, verification=old)
    manifest = (bundle_path / "manifest.json").read_bytes()
    bundle = Bundle.open(bundle_path)
    assert verifications(bundle) == old
    record_verification(bundle, PASSED)
    assert {name: one.passed for name, one in verifications(bundle).items()} == {"onnxruntime": True, "openvino": True}
    assert (bundle_path / "manifest.json").read_bytes() == manifest


def test_a_report_joins_those_of_other_backends(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    for name in ("torch", "onnxruntime"):
        record_verification(bundle, {**PASSED, "backend": name})
    assert set(verifications(bundle)) == {"torch", "onnxruntime"}


@pytest.mark.parametrize("text", ["", "[]", '{"bundle": 1}', '{"bundle": "x", "reports": {"torch": 3}}', "\0"])
def test_a_file_of_another_bundle_or_a_damaged_one_has_no_reports(
    text: str, bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(bundle_path)
    (bundle_path / "verify.json").write_text(text.replace('"x"', json.dumps(bundle.digest)))
    assert verifications(bundle) == {}
    assert ("e3d verify` writes it again" in caplog.text) == (text != '{"bundle": 1}')
    record_verification(bundle, PASSED)
    assert set(verifications(bundle)) == {"onnxruntime"}
