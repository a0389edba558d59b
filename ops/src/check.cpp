#include "check.h"

#include <ATen/ATen.h>

#include <string>

namespace msda {
namespace {

// Messages take numbers as text: where a compiler links the C++ library statically into an extension, a stream that the
// extension makes crashes when the library that PyTorch brought formats a number for it.
using std::to_string;

std::string to_string(at::IntArrayRef sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + to_string(size);
  return "[" + text + "]";
}

void check_dims(const at::Tensor& tensor, const char* name, int64_t dims, const char* form) {
  TORCH_CHECK_VALUE(tensor.dim() == dims, name, ": expected ", form, ", got ", to_string(tensor.sizes()));
}

void check_size(const at::Tensor& tensor, const char* name, int64_t dim, int64_t expected, const char* meaning) {
  TORCH_CHECK_VALUE(tensor.size(dim) == expected, name, ": expected ", to_string(expected), " (", meaning,
                    ") in dimension ", to_string(dim), ", got ", to_string(tensor.sizes()));
}

void check_like_value(const at::Tensor& tensor, const char* name, const at::Tensor& value) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == value.scalar_type(), name, ": expected ", value.scalar_type(),
                    ", the dtype of value, got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == value.device(), name, ": expected to be on ", value.device(),
                    ", the device of value, got ", tensor.device());
}

void check_integers(const at::Tensor& tensor, const char* name, const at::Tensor& value) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kLong, name, ": expected int64, got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.is_cpu() || tensor.device() == value.device(), name, ": expected to be on the CPU or on ",
                    value.device(), ", the device of value, got ", tensor.device());
}

// The levels follow each other without gaps and fill value; reading them waits for a GPU that holds them.
void check_levels(const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index) {
  const at::Tensor shapes = spatial_shapes.cpu().contiguous(), starts = level_start_index.cpu().contiguous();
  const int64_t *shape = shapes.const_data_ptr<int64_t>(), *start = starts.const_data_ptr<int64_t>();
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  int64_t total = 0;
  for (int64_t level = 0; level < shapes.size(0); ++level) {
    const int64_t height = shape[2 * level], width = shape[2 * level + 1];
    TORCH_CHECK_VALUE(height >= 0 && width >= 0 && height < limit && width < limit, "spatial_shapes: level ",
                      to_string(level), " has a height and width of ", to_string(height), " and ", to_string(width));
    TORCH_CHECK_VALUE(start[level] == total, "level_start_index: expected level ", to_string(level), " to start at ",
                      to_string(total), ", where spatial_shapes put it, got ", to_string(start[level]));
    TORCH_CHECK_VALUE(height == 0 || width < limit / height, "spatial_shapes: level ", to_string(level),
                      " is too large");
    total += height * width;
  }
  TORCH_CHECK_VALUE(total == value.size(1), "spatial_shapes: the levels have ", to_string(total),
                    " positions, but value has ", to_string(value.size(1)));
  TORCH_CHECK_VALUE(total < limit, "value: expected fewer than 2^31 - 1 positions, got ", to_string(total));
}

}  // namespace

void check_arguments(const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
                     const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  check_dims(value, "value", 4, "[batch, positions, heads, channels]");
  check_dims(spatial_shapes, "spatial_shapes", 2, "[levels, 2]");
  check_dims(level_start_index, "level_start_index", 1, "[levels]");
  check_dims(sampling_locations, "sampling_locations", 6, "[batch, queries, heads, levels, points, 2]");
  check_dims(attention_weights, "attention_weights", 5, "[batch, queries, heads, levels, points]");

  TORCH_CHECK_VALUE(at::isFloatingType(value.scalar_type()) && !at::isFloat8Type(value.scalar_type()),
                    "value: expected float32, float64, bfloat16 or float16, got ", value.scalar_type());
  check_like_value(sampling_locations, "sampling_locations", value);
  check_like_value(attention_weights, "attention_weights", value);
  check_integers(spatial_shapes, "spatial_shapes", value);
  check_integers(level_start_index, "level_start_index", value);

  const auto levels = spatial_shapes.size(0);
  check_size(spatial_shapes, "spatial_shapes", 1, 2, "height and width");
  check_size(level_start_index, "level_start_index", 0, levels, "the levels of spatial_shapes");
  check_size(sampling_locations, "sampling_locations", 0, value.size(0), "the batch of value");
  check_size(sampling_locations, "sampling_locations", 2, value.size(2), "the heads of value");
  check_size(sampling_locations, "sampling_locations", 3, levels, "the levels of spatial_shapes");
  check_size(sampling_locations, "sampling_locations", 5, 2, "x and y");
  for (int64_t dim = 0; dim < 5; ++dim) {
    check_size(attention_weights, "attention_weights", dim, sampling_locations.size(dim),
               "as sampling_locations has");
  }
  check_levels(value, spatial_shapes, level_start_index);
}

void check_grad_output(const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& sampling_locations) {
  check_dims(grad_output, "grad_output", 3, "[batch, queries, heads * channels]");
  check_like_value(grad_output, "grad_output", value);
  check_size(grad_output, "grad_output", 0, value.size(0), "the batch of value");
  check_size(grad_output, "grad_output", 1, sampling_locations.size(1), "the queries of sampling_locations");
  check_size(grad_output, "grad_output", 2, value.size(2) * value.size(3), "heads * channels of value");
}

}  // namespace msda
