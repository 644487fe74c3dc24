// torch.ops.thriftree.linear: our kernel for few rows, the engine's own product for many. One op, so that a compiled
// graph, which knows no number of rows, holds both. Written against torch's stable ABI: it builds in seconds.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

extern "C" {
struct linear {  // as in linear.c
    const void *weight;
    int64_t n, k, type, limit;
};
void thriftree_linear(const struct linear *, const float *, const void *, void *, int64_t rows);
void thriftree_widen(const void *, float *, int64_t count, int64_t type);
}

using torch::stable::Tensor;

static void stock(Tensor &y, const Tensor &x, const std::optional<Tensor> &bias, const Tensor &handler) {
    StableIValue stack[] = {torch::stable::detail::from(y), torch::stable::detail::from(x),
                            torch::stable::detail::from(bias), torch::stable::detail::from(handler)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("_C::onednn_mm", "", stack, TORCH_ABI_VERSION));
}

// x [..., k], layer [1] int64: address of a struct linear; handler: of vLLM's oneDNN product; -> [..., n].
static Tensor linear(Tensor x, Tensor layer, Tensor handler, std::optional<Tensor> bias, int64_t n) {
    const auto *l = reinterpret_cast<const struct linear *>(*static_cast<const int64_t *>(layer.const_data_ptr()));
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.back() = n;
    Tensor y = torch::stable::new_empty(x, shape);
    int64_t rows = x.numel() / l->k;
    Tensor dense = torch::stable::contiguous(x);
    if (rows > l->limit) {
        Tensor flat = torch::stable::view(dense, {rows, l->k}), out = torch::stable::view(y, {rows, n});
        stock(out, flat, bias, handler);
        return y;
    }
    const void *data = dense.const_data_ptr(), *b = bias ? bias->const_data_ptr() : nullptr;
    if (l->type == 0) {
        thriftree_linear(l, static_cast<const float *>(data), b, y.mutable_data_ptr(), rows);
    } else {
        std::vector<float> wide(rows * l->k);
        thriftree_widen(data, wide.data(), rows * l->k, l->type);
        thriftree_linear(l, wide.data(), b, y.mutable_data_ptr(), rows);
    }
    return y;
}

STABLE_TORCH_LIBRARY(thriftree, m) {
    m.def("linear(Tensor x, Tensor layer, Tensor handler, Tensor? bias, int n) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(thriftree, CPU, m) { m.impl("linear", TORCH_BOX(&linear)); }
