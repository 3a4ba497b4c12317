#!/usr/bin/env python3
"""Envelopes that cross over between this project and the Python libraries securesystemslib and in-toto.

    make.py make          write theirs.json: envelopes that they signed, and attacks on them, for the Rust tests
    make.py check FILE    verify FILE (envelopes that we signed) with both, and that theirs.json is what `make` writes

Needs `securesystemslib[crypto]` and `in-toto`; .ci/run installs the versions that are pinned in requirements.txt.
"""

import base64
import copy
import json
import pathlib
import sys

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from in_toto.models.link import Link
from in_toto.models.metadata import Envelope as InTotoEnvelope
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

HERE = pathlib.Path(__file__).parent
OURS = HERE / "ours.json"
THEIRS = HERE / "theirs.json"
IN_TOTO = "application/vnd.in-toto+json"


def signer(name):
    private = load_ssh_private_key((HERE / "openssh" / name).read_bytes(), password=None)
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


ED25519, P256 = signer("ed25519"), signer("ecdsa")
SIGNERS = {"ed25519": ED25519, "ecdsa": P256}


def signed(payload, signers):
    envelope = Envelope(payload, IN_TOTO, {})
    for each in signers:
        envelope.sign(each)
    return envelope.to_dict()


def url_safe(text):
    return base64.urlsafe_b64encode(base64.b64decode(text)).decode().rstrip("=")


def vectors(payload):
    """The name, the envelope, the names of the trusted keys, the threshold, and whether it must be accepted."""
    both = signed(payload, [ED25519, P256])
    of_ed25519, of_p256 = signed(payload, [ED25519]), signed(payload, [P256])
    everyone = ["ed25519", "ecdsa"]

    yield "Ed25519", of_ed25519, ["ed25519"], 1, True
    yield "ECDSA P-256", of_p256, ["ecdsa"], 1, True
    yield "both keys", both, everyone, 2, True
    yield "one of two keys", of_p256, everyone, 2, False
    yield "a key that is not trusted", of_p256, ["ed25519"], 1, False

    other = copy.deepcopy(both)
    other["payload"] = url_safe(other["payload"])
    for signature in other["signatures"]:
        signature["sig"] = url_safe(signature["sig"])
    yield "URL-safe base64 without padding", other, everyone, 2, True

    other = copy.deepcopy(both)
    other["signatures"][0]["keyid"], other["signatures"][1]["keyid"] = (
        other["signatures"][1]["keyid"],
        "nonsense",
    )
    yield "key ids that lie", other, everyone, 2, True

    other = copy.deepcopy(both)
    for signature in other["signatures"]:
        del signature["keyid"]
    yield "no key ids", other, everyone, 2, True

    other = copy.deepcopy(of_ed25519)
    other["signatures"].append({**other["signatures"][0], "keyid": P256.public_key.keyid})
    yield "RUSTSEC-2020-0024: one signature under two key ids", other, everyone, 2, False

    other = copy.deepcopy(of_p256)
    other["signatures"] += signed(payload, [P256])["signatures"]
    other["signatures"][1]["keyid"] = ED25519.public_key.keyid
    yield "RUSTSEC-2020-0024: two signatures of one key", other, everyone, 2, False

    other = copy.deepcopy(both)
    other["payload"] = base64.b64encode(payload.replace(b"1.2.0", b"1.2.1")).decode()
    yield "another payload", other, everyone, 1, False

    other = copy.deepcopy(both)
    other["payloadType"] = "application/vnd.muster.order+json"
    yield "another payload type", other, everyone, 1, False

    link = InTotoEnvelope.from_signable(Link(name="build", products={"a": {"sha256": "00" * 32}}))
    for each in (ED25519, P256):
        link.create_signature(each)
    yield "an in-toto link", link.to_dict(), everyone, 2, True


def make():
    # The payload is one of ours, so that it is read to its end.
    payload = base64.b64decode(json.loads(OURS.read_text())["envelopes"][0]["payload"])
    names = ("name", "envelope", "keys", "threshold", "accepted")
    return {"vectors": [dict(zip(names, vector)) for vector in vectors(payload)]}


def without_random_signatures(theirs):
    """ECDSA signatures are different each time."""
    theirs = copy.deepcopy(theirs)
    for vector in theirs["vectors"]:
        for signature in vector["envelope"]["signatures"]:
            if len(signature["sig"]) > 90:
                signature["sig"] = "ECDSA"
    return theirs


def fails(verify):
    try:
        verify()
    except VerificationError:
        return True
    return False


def check(path):
    """Verifies what we signed, as they would."""
    envelopes = json.loads(path.read_text())["envelopes"]
    assert envelopes, f"{path} holds no envelopes"
    for data in envelopes:
        # They find the key by its id, which is for every project to choose.
        keyids = [signature["keyid"] for signature in data["signatures"]]
        keys = []
        for keyid, name in zip(keyids, data.pop("signers"), strict=True):
            key = copy.deepcopy(SIGNERS[name].public_key)
            key.keyid = keyid
            keys.append(key)
        as_in_toto = InTotoEnvelope.from_dict(copy.deepcopy(data))
        for key in keys:
            as_in_toto.verify_signature({**key.to_dict(), "keyid": key.keyid})
        envelope = Envelope.from_dict(copy.deepcopy(data))
        assert len(envelope.verify(keys, len(keys))) == len(keys)
        statement = json.loads(envelope.payload)
        assert statement["_type"] == "https://in-toto.io/Statement/v1", statement
        envelope.payload += b" "
        assert fails(lambda: envelope.verify(keys, len(keys))), "an altered payload was accepted"
    print(f"{path}: {len(envelopes)} envelopes verify with securesystemslib and in-toto")


def main(arguments):
    match arguments:
        case ["make"]:
            THEIRS.write_text(json.dumps(make(), indent=1) + "\n")
        case ["check", *paths] if paths:
            for path in paths:
                check(pathlib.Path(path))
            committed = json.loads(THEIRS.read_text())
            assert without_random_signatures(committed) == without_random_signatures(make()), (
                "theirs.json is not what they write; run `make.py make`"
            )
            print(f"{THEIRS}: {len(committed['vectors'])} vectors are what they write")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
