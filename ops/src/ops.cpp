// The operators' schemas and what holds on every device: gradients, autocast. Shapes for tracing are in fake.py.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace msda {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Tensor call_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                    const Tensor& sampling_locations, const Tensor& attention_weights) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("siamese_detr::ms_deform_attn", "")
                             .typed<decltype(call_forward)>();
  return op.call(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
}

Gradients call_backward(const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
                        const Tensor& level_start_index, const Tensor& sampling_locations,
                        const Tensor& attention_weights) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("siamese_detr::ms_deform_attn_backward", "")
                             .typed<decltype(call_backward)>();
  return op.call(grad_output, value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
}

struct Forward : torch::autograd::Function<Forward> {
  static Tensor forward(AutogradContext* context, const Tensor& value, const Tensor& spatial_shapes,
                        const Tensor& level_start_index, const Tensor& sampling_locations,
                        const Tensor& attention_weights) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({value, spatial_shapes, level_start_index, sampling_locations, attention_weights});
    return call_forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_outputs) {
    const auto saved = context->get_saved_variables();
    auto [value, locations, weights] =
        call_backward(grad_outputs[0], saved[0], saved[1], saved[2], saved[3], saved[4]);
    return {value, Tensor(), Tensor(), locations, weights};
  }
};

struct Backward : torch::autograd::Function<Backward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad_output, const Tensor& value,
                               const Tensor& spatial_shapes, const Tensor& level_start_index,
                               const Tensor& sampling_locations, const Tensor& attention_weights) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [grad_value, locations, weights] = call_backward(grad_output, value, spatial_shapes, level_start_index,
                                                          sampling_locations, attention_weights);
    return {grad_value, locations, weights};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_outputs) {
    TORCH_CHECK(false,
                "ms_deform_attn has no second derivative: differentiate its gradient with ops.reference."
                "ms_deform_attn_reference, or leave out create_graph=True");
  }
};

Tensor forward_autograd(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                        const Tensor& sampling_locations, const Tensor& attention_weights) {
  return Forward::apply(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
}

Gradients backward_autograd(const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
                            const Tensor& level_start_index, const Tensor& sampling_locations,
                            const Tensor& attention_weights) {
  const auto gradients = Backward::apply(grad_output, value, spatial_shapes, level_start_index, sampling_locations,
                                         attention_weights);
  return {gradients[0], gradients[1], gradients[2]};
}

// Under autocast all is float32: with the 8 bits of bfloat16 a location in a level of 100 cells would be off by a
// quarter of a cell.
template <c10::DeviceType device>
Tensor forward_autocast(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                        const Tensor& sampling_locations, const Tensor& attention_weights) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto widen = [](const Tensor& tensor) { return at::autocast::cached_cast(at::kFloat, tensor, device); };
  return call_forward(widen(value), spatial_shapes, level_start_index, widen(sampling_locations),
                      widen(attention_weights));
}

}  // namespace
}  // namespace msda

TORCH_LIBRARY(siamese_detr, m) {
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(siamese_detr, Autograd, m) {
  m.impl("ms_deform_attn", &msda::forward_autograd);
  m.impl("ms_deform_attn_backward", &msda::backward_autograd);
}

TORCH_LIBRARY_IMPL(siamese_detr, AutocastCPU, m) {
  m.impl("ms_deform_attn", &msda::forward_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(siamese_detr, AutocastCUDA, m) {
  m.impl("ms_deform_attn", &msda::forward_autocast<c10::DeviceType::CUDA>);
}
