// What the arguments of multi-scale deformable attention must be, on any device.
#pragma once

#include <ATen/core/Tensor.h>

namespace msda {

// Raises ValueError; the message names the argument and says what was expected.
void check_arguments(const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
                     const at::Tensor& sampling_locations, const at::Tensor& attention_weights);

// The gradient of the output must look like the output.
void check_grad_output(const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& sampling_locations);

}  // namespace msda
