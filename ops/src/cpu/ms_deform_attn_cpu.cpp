// Tensors in, tensors out on the CPU: packs the values head by head, runs the kernels on PyTorch's threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../check.h"
#include "kernels.h"

namespace msda {
namespace {

using at::Tensor;

// Blocks of queries that one task has at least, so that its start is paid for.
constexpr int64_t kGrain = 2;

// Reads of a row, on average, from which on a copy of the values in better order pays.
constexpr int64_t kReads = 2;

Problem describe(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                 const Tensor& sampling_locations) {
  Problem problem;
  problem.batch = value.size(0);
  problem.positions = value.size(1);
  problem.heads = value.size(2);
  problem.channels = value.size(3);
  problem.queries = sampling_locations.size(1);
  const Tensor shapes = spatial_shapes.contiguous(), starts = level_start_index.contiguous();
  const int64_t levels = shapes.size(0), points = sampling_locations.size(4);
  for (int64_t level = 0; level < levels; ++level) {
    const auto* shape = shapes.const_data_ptr<int64_t>() + 2 * level;
    const auto start = starts.const_data_ptr<int64_t>()[level];
    problem.heights.insert(problem.heights.end(), points, static_cast<int32_t>(shape[0]));
    problem.widths.insert(problem.widths.end(), points, static_cast<int32_t>(shape[1]));
    problem.starts.insert(problem.starts.end(), points, static_cast<int32_t>(start));
  }
  problem.points = levels * points;
  return problem;
}

// Values head by head, so that neighbours lie close together: in [B, S, M, D] a head's rows lie M * D apart, four to a
// page. The copy [B, M, S, whole vectors] pays when its rows are read several times; few queries read them where they are.
template <typename T>
struct Values {
  Values(const Problem& problem, const Tensor& value) {
    const auto type = c10::CppTypeToScalarType<T>::value;
    const int64_t length = (problem.channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    is_packed = length != problem.channels || problem.queries * problem.points >= kReads * problem.positions;
    if (is_packed) {
      tensor = at::empty({problem.batch, problem.heads, problem.positions, length}, value.options().dtype(type));
      if (length > problem.channels) tensor.narrow(3, problem.channels, length - problem.channels).zero_();
      tensor.narrow(3, 0, problem.channels).copy_(value.transpose(1, 2));
      rows = {tensor.stride(0), tensor.stride(1), tensor.stride(2), length};
    } else {
      tensor = value.to(type).contiguous();
      rows = {tensor.stride(0), tensor.stride(2), tensor.stride(1), length};
    }
  }

  // A tensor laid out as the values -> [B, S, M, D] of this dtype.
  Tensor unpack(const Problem& problem, const Tensor& packed, at::ScalarType type) const {
    return (is_packed ? packed.narrow(3, 0, problem.channels).transpose(1, 2) : packed).to(type).contiguous();
  }

  Tensor tensor;
  Rows rows;
  bool is_packed;
};

template <typename T>
Tensor forward_as(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                  const Tensor& sampling_locations, const Tensor& attention_weights) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const Problem problem = describe(value, spatial_shapes, level_start_index, sampling_locations);
  const Values<T> values(problem, value);
  const Tensor locations = sampling_locations.to(type).contiguous(), weights = attention_weights.to(type).contiguous();
  Tensor output =
      at::empty({problem.batch, problem.queries, problem.heads * problem.channels}, value.options().dtype(type));
  const T *values_data = values.tensor.template const_data_ptr<T>(), *locations_data = locations.const_data_ptr<T>();
  const T* weights_data = weights.const_data_ptr<T>();
  T* output_data = output.mutable_data_ptr<T>();
  at::parallel_for(0, problem.batch * problem.blocks() * problem.heads, kGrain, [&](int64_t begin, int64_t end) {
    forward<T>(problem, values.rows, values_data, locations_data, weights_data, output_data, begin, end);
  });
  return output.to(value.scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward_as(const Tensor& grad_output, const Tensor& value,
                                               const Tensor& spatial_shapes, const Tensor& level_start_index,
                                               const Tensor& sampling_locations, const Tensor& attention_weights) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const Problem problem = describe(value, spatial_shapes, level_start_index, sampling_locations);
  const Values<T> values(problem, value);
  const Tensor grad_values = at::zeros_like(values.tensor);
  const Tensor locations = sampling_locations.to(type).contiguous(), weights = attention_weights.to(type).contiguous();
  const Tensor gradient = grad_output.to(type).contiguous();
  const Tensor grad_locations = at::empty_like(locations), grad_weights = at::empty_like(weights);
  const T *values_data = values.tensor.template const_data_ptr<T>(), *locations_data = locations.const_data_ptr<T>();
  const T *weights_data = weights.const_data_ptr<T>(), *gradient_data = gradient.const_data_ptr<T>();
  T *grad_values_data = grad_values.mutable_data_ptr<T>(), *grad_weights_data = grad_weights.mutable_data_ptr<T>();
  T* grad_locations_data = grad_locations.mutable_data_ptr<T>();
  at::parallel_for(0, problem.batch * problem.heads, 1, [&](int64_t begin, int64_t end) {
    backward<T>(problem, values.rows, values_data, locations_data, weights_data, gradient_data, grad_values_data,
                grad_locations_data, grad_weights_data, begin, end);
  });
  const auto dtype = value.scalar_type();
  return {values.unpack(problem, grad_values, dtype), grad_locations.to(dtype), grad_weights.to(dtype)};
}

// 16-bit arguments are computed with in float32.
Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const auto compute = value.scalar_type() == at::kDouble ? forward_as<double> : forward_as<float>;
  return compute(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           const Tensor& spatial_shapes,
                                                           const Tensor& level_start_index,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights) {
  check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sampling_locations);
  const auto compute = value.scalar_type() == at::kDouble ? backward_as<double> : backward_as<float>;
  return compute(grad_output, value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
}

}  // namespace
}  // namespace msda

TORCH_LIBRARY_IMPL(siamese_detr, CPU, m) {
  m.impl("ms_deform_attn", &msda::ms_deform_attn);
  m.impl("ms_deform_attn_backward", &msda::ms_deform_attn_backward);
}
