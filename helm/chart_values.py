"""The values of the chart as a model: what `values.schema.json` is made from, and what `values.yaml` must say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: An object of Kubernetes, which checks it itself.
Kubernetes = dict[str, Any]
#: ``10Gi``
Size = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)]
Labels = dict[str, str]
Seconds = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Unknown names are refused: most of them are typing errors."""

    model_config = ConfigDict(extra="forbid")


class Image(Part):
    repository: str = Field(min_length=1)
    tag: str = Field(
        pattern=r"^[\w.-]*$",
        description="not latest: a rollback needs a name",
        json_schema_extra={"not": {"const": "latest"}},
    )
    digest: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]
    pullSecrets: list[Kubernetes]


class SecretKey(Part):
    name: Name
    key: str = Field(min_length=1)


class Database(Part):
    enabled: bool
    size: Size
    storageClass: str
    existingClaim: Name


class Store(Part):
    name: Name
    kind: Literal["SecretStore", "ClusterSecretStore"]


class ExternalSecret(Part):
    enabled: bool
    apiVersion: Literal["external-secrets.io/v1", "external-secrets.io/v1beta1"]
    refreshInterval: str
    store: Store
    remoteKey: str
    property: str


class Keys(Part):
    database: Database
    secret: SecretKey
    externalSecret: ExternalSecret


class Gpu(Part):
    count: int = Field(ge=0)
    resource: str = Field(min_length=1)
    runtimeClassName: Name
    tensorParallelSize: int = Field(ge=0)


class Cache(Part):
    persistent: bool
    size: Size
    storageClass: str
    accessMode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]
    existingClaim: Name


class Service(Part):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    port: int = Field(ge=1, le=65535)
    annotations: Labels


class Ingress(Part):
    enabled: bool
    className: str
    annotations: Labels
    hosts: list[str]
    tls: list[Kubernetes]


class NetworkPolicy(Part):
    enabled: bool
    clients: list[Kubernetes]
    prometheus: list[Kubernetes]
    dns: list[Kubernetes]
    egress: list[Kubernetes]


class Autoscaling(Part):
    enabled: bool
    minReplicas: int = Field(ge=1)
    maxReplicas: int = Field(ge=1)
    queueDepth: int = Field(ge=1, description="waiting requests a replica; above it, replicas are added")
    tokensPerSecond: int = Field(ge=0, description="completion tokens a second and replica; 0: not looked at")
    scaleDownSeconds: int = Field(ge=0, le=3600)


class Disruption(Part):
    enabled: bool
    maxUnavailable: int | str


class Monitor(Part):
    enabled: bool
    interval: str
    labels: Labels
    keySecret: SecretKey


class Rule(Part):
    enabled: bool
    labels: Labels


class Dashboards(Part):
    enabled: bool
    labels: Labels
    annotations: Labels


class Account(Part):
    create: bool
    name: Name
    annotations: Labels


class Spread(Part):
    maxSkew: int = Field(ge=1)
    topologyKey: str
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]


class Values(Part):
    """Everything but `settings`, which the server's own model describes."""

    image: Image
    nameOverride: Name
    fullnameOverride: Name
    replicas: int = Field(ge=0)
    model: str
    engines: list[Annotated[str, Field(pattern=r"^https?://")]]
    extraArgs: list[str]
    keys: Keys
    redisSecret: SecretKey
    engineKeySecret: SecretKey
    gpu: Gpu
    resources: Kubernetes
    sharedMemory: Size
    cache: Cache
    drainSeconds: Seconds
    preStopSeconds: Seconds
    stopSeconds: int = Field(ge=5, description="seconds for the engine to be put away, after the drain")
    strategy: Kubernetes
    service: Service
    ingress: Ingress
    networkPolicy: NetworkPolicy
    autoscaling: Autoscaling
    podDisruptionBudget: Disruption
    serviceMonitor: Monitor
    prometheusRule: Rule
    dashboards: Dashboards
    serviceAccount: Account
    podAnnotations: Labels
    podLabels: Labels
    priorityClassName: Name
    nodeSelector: Labels
    tolerations: list[Kubernetes]
    affinity: Kubernetes
    topologySpread: list[Spread]
    extraEnv: list[Kubernetes]
    extraVolumes: list[Kubernetes]
    extraVolumeMounts: list[Kubernetes]
