"""Sets of values that the chart is rendered with."""

from __future__ import annotations

from typing import Any

MONITORED: dict[str, Any] = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "keySecret": {"name": "scrape"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "LLM"}},
}
GPU: dict[str, Any] = {
    "model": "org/model-8b",
    "settings": {"thrift": False},
    "gpu": {"count": 2, "runtimeClassName": "nvidia"},
    "resources": {"requests": {"cpu": "8", "memory": "64Gi"}, "limits": {"memory": "64Gi"}},
    "sharedMemory": "16Gi",
    "cache": {"persistent": True, "size": "200Gi"},
    "extraArgs": ["--max-model-len=8192"],
    "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "nodeSelector": {"nvidia.com/gpu.present": "true"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "networkPolicy": {
        "egress": [{"ports": [{"port": 443}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}],
    },
}
GATEWAY: dict[str, Any] = {
    "engines": ["http://engine-a:8000", "http://engine-b:8000"],
    "replicas": 3,
    "keys": {"database": {"enabled": False}, "secret": {"name": "llm-keys"}},
    "redisSecret": {"name": "quotas"},
    "engineKeySecret": {"name": "engines"},
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
    "networkPolicy": {
        "egress": [
            {"ports": [{"port": 8000}], "to": [{"podSelector": {"matchLabels": {"app": "engine"}}}]},
            {"ports": [{"port": 6379}], "to": [{"podSelector": {"matchLabels": {"app": "redis"}}}]},
        ],
    },
}
EVERYTHING: dict[str, Any] = {
    **MONITORED,
    "image": {"repository": "registry.example.com/llm/thriftree", "digest": "sha256:" + "0" * 64,
              "pullSecrets": [{"name": "registry"}]},
    "settings": {
        "thrift": "off",
        "limits": {"max_body_bytes": 1_000_000},
        "admission": {"max_queue": 64, "max_queue_tokens": 2_000_000},
        "vllm": {"max-model-len": 1_000_000, "trust-remote-code": False},
    },
    "model": "/models-of-mine/8b",
    "keys": {
        "database": {"enabled": False},
        "externalSecret": {"enabled": True, "store": {"name": "vault", "kind": "ClusterSecretStore"},
                           "remoteKey": "llm/keys", "property": "file"},
    },
    "redisSecret": {"name": "quotas"},
    "gpu": {"count": 1},
    "cache": {"persistent": True, "accessMode": "ReadWriteMany", "storageClass": "shared"},
    "drainSeconds": 120,
    "preStopSeconds": 10,
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
        "hosts": ["llm.example.com"],
        "tls": [{"hosts": ["llm.example.com"], "secretName": "llm-tls"}],
    },
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}],
        "egress": [{"ports": [{"port": 6379}]}],
    },
    "autoscaling": {"enabled": True, "maxReplicas": 8, "tokensPerSecond": 2000},
    "serviceAccount": {"annotations": {"example.com/role": "reader"}},
    "service": {"annotations": {"example.com/a": "b"}},
    "podAnnotations": {"example.com/c": "d"},
    "podLabels": {"team": "llm"},
    "priorityClassName": "serving",
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}},
    "extraEnv": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "extraVolumes": [{"name": "mine", "persistentVolumeClaim": {"claimName": "models"}}],
    "extraVolumeMounts": [{"name": "mine", "mountPath": "/models-of-mine", "readOnly": True}],
}  # fmt: skip

SETS: dict[str, dict[str, Any]] = {
    "default": {}, "monitored": MONITORED, "gpu": GPU, "gateway": GATEWAY, "everything": EVERYTHING,
}  # fmt: skip
