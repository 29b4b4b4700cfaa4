"""Kubernetes' CRI as kubelet speaks it: pods of host network, their containers, images."""

from pathlib import Path
from typing import Any

import grpc

from tests.waiting import wait_until

from . import cri_pb2 as pb

TIMEOUT = 60.0
_HOST_NETWORK = 2


class Cri:
    """The calls, to whoever listens at the socket."""

    def __init__(self, socket: Path) -> None:
        options = [("grpc.default_authority", "localhost")]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        grpc.channel_ready_future(self._channel).result(TIMEOUT)
        wait_until(self._is_initialized, "CRI")

    def _is_initialized(self) -> bool:
        """containerd listens before."""
        try:
            self._call("RuntimeService/Status", pb.Empty())
        except grpc.RpcError as error:
            assert "not initialized" in (error.details() or "")
            return False
        return True

    def close(self) -> None:
        self._channel.close()

    def pull(self, image: str) -> None:
        self._call("ImageService/PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=image)))

    def remove_image(self, image: str) -> None:
        self._call("ImageService/RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))

    def run_pod(self, name: str, logs: Path) -> "Pod":
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=name, namespace="tests"),
            log_directory=str(logs),
            linux=pb.LinuxPodSandboxConfig(
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=pb.NamespaceOption(network=_HOST_NETWORK)
                )
            ),
        )
        request = pb.RunPodSandboxRequest(config=config)
        answer = self._call("RuntimeService/RunPodSandbox", request, pb.RunPodSandboxResponse)
        return Pod(self, answer.pod_sandbox_id, config)

    def _call(self, method: str, request: Any, answer: type[Any] = pb.Empty) -> Any:
        call = self._channel.unary_unary(
            f"/runtime.v1.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=TIMEOUT)


class Pod:
    """A pod that runs; `remove` ends it and all that is in it."""

    def __init__(self, cri: Cri, identity: str, config: pb.PodSandboxConfig) -> None:
        self._cri = cri
        self.id = identity
        self._config = config

    def start(self, image: str, name: str, *command: str) -> str:
        """A container that runs; its id. It logs to `name`.log."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
        )
        request = pb.CreateContainerRequest(
            pod_sandbox_id=self.id, config=config, sandbox_config=self._config
        )
        answer = self._cri._call("RuntimeService/CreateContainer", request, pb.CreateContainerResponse)
        identity: str = answer.container_id
        self._cri._call("RuntimeService/StartContainer", pb.ContainerRequest(container_id=identity))
        return identity

    def execute(self, container: str, *command: str) -> bytes:
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=30)
        answer = self._cri._call("RuntimeService/ExecSync", request, pb.ExecSyncResponse)
        assert answer.exit_code == 0, answer.stderr
        said: bytes = answer.stdout
        return said

    def stop(self, container: str) -> None:
        for method in ("StopContainer", "RemoveContainer"):
            self._cri._call(f"RuntimeService/{method}", pb.ContainerRequest(container_id=container))

    def remove(self) -> None:
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            self._cri._call(f"RuntimeService/{method}", pb.PodSandboxRequest(pod_sandbox_id=self.id))
