"""Is what operator and worker do not use, or not yet, left out of their memory?"""

import subprocess
import sys


def _python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_the_operator_imports_no_generated_client() -> None:
    loaded = (
        "import sys, berth_operator.handlers, berth_operator.process\nprint(len([m for m in sys.modules if CLIENT]))"
    )
    assert _python(loaded.replace("CLIENT", "m.startswith('kubernetes_asyncio')")) == "0"


def test_who_wants_the_whole_client_gets_it() -> None:
    for first in ("berth_operator.process", "kubernetes_asyncio.client"):
        program = f"import {first}, berth_operator.cluster.connection as ours, kubernetes_asyncio.client as whole\n"
        program += (
            "print(whole.V1Pod.__name__, type(ours.Configuration()).__name__, ours.config.ConfigException.__name__)"
        )
        assert _python(program) == "V1Pod Configuration ConfigException"


def test_the_workers_faces_need_neither_tensors_nor_grammars_before_the_model_is_there() -> None:
    program = "import sys, berth_worker.server.main, berth_worker.server.openai_face, berth_worker.server.grpc_face\n"
    assert _python(program + "print([m for m in ('torch', 'llguidance', 'tokenizers') if m in sys.modules])") == "[]"
