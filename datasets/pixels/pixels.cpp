// The operations on pixels for two-view samples, one picture at a time, in one thread. datasets/pixels/compiled.py calls
// them.
//
// Plain loops over rows, which compilers turn into vector instructions. Sums are not reordered and multiplications not
// fused with additions, so that every machine computes the same bytes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORIZED
#endif

namespace {

constexpr float kLuma[3] = {0.299f, 0.587f, 0.114f};  // ITU-R 601-2

// The source pixels that an output pixel averages, and their weights: a triangle two pixels wide, where "pixels" are the
// larger ones of output and source. The same as Pillow's bilinear filter.
struct Filter {
  int taps = 0;                // of the widest
  std::vector<int> first;      // [output]
  std::vector<int> count;      // [output]
  std::vector<float> weights;  // [output, taps]
};

Filter make_filter(double begin, double end, int input, int output) {
  const double scale = (end - begin) / output, support = std::max(scale, 1.0);
  Filter filter;
  filter.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  filter.weights.assign(static_cast<size_t>(output) * filter.taps, 0.0f);
  for (int i = 0; i < output; ++i) {
    const double centre = begin + (i + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int last = std::min(static_cast<int>(centre + support + 0.5), input);
    float* weights = &filter.weights[static_cast<size_t>(i) * filter.taps];
    double total = 0;
    for (int j = first; j < last; ++j) total += std::max(1 - std::abs((j + 0.5 - centre) / support), 0.0);
    for (int j = first; j < last; ++j)
      weights[j - first] = static_cast<float>(std::max(1 - std::abs((j + 0.5 - centre) / support), 0.0) / total);
    filter.first.push_back(first);
    filter.count.push_back(last - first);
  }
  return filter;
}

typedef float Pixel __attribute__((vector_size(16)));  // red, green, blue, unused

VECTORIZED void add_row(const uint8_t* row, float weight, float* sum, int length) {
  for (int i = 0; i < length; ++i) sum[i] += weight * row[i];
}

VECTORIZED void widen_row(const float* row, Pixel* pixels, int length) {
  for (int i = 0; i < length; ++i) pixels[i] = Pixel{row[3 * i], row[3 * i + 1], row[3 * i + 2], 0.0f};
}

VECTORIZED void resample_row(const Pixel* row, const Filter& filter, int offset, uint8_t* out, int width) {
  for (int i = 0; i < width; ++i) {
    const Pixel* pixels = row + (filter.first[i] - offset);
    const float* weights = &filter.weights[static_cast<size_t>(i) * filter.taps];
    Pixel sum = {0.5f, 0.5f, 0.5f, 0.0f};
    for (int j = 0; j < filter.count[i]; ++j) sum += pixels[j] * weights[j];
    for (int channel = 0; channel < 3; ++channel) out[3 * i + channel] = static_cast<uint8_t>(sum[channel]);
  }
}

inline float whole(float value) { return static_cast<float>(static_cast<int>(std::min(std::max(value, 0.0f), 255.0f))); }

VECTORIZED void unpack_row(const uint8_t* row, float* red, float* green, float* blue, int length) {
  for (int i = 0; i < length; ++i) {
    red[i] = row[3 * i];
    green[i] = row[3 * i + 1];
    blue[i] = row[3 * i + 2];
  }
}

// Scales the distance to one grey value (contrast; for brightness, to 0).
VECTORIZED void scale_row(float* values, float factor, float rest, int length) {
  for (int i = 0; i < length; ++i) values[i] = whole(values[i] * factor + rest);
}

VECTORIZED void saturate_row(float* red, float* green, float* blue, float factor, int length) {
  for (int i = 0; i < length; ++i) {
    const float luma = whole(red[i] * kLuma[0] + green[i] * kLuma[1] + blue[i] * kLuma[2] + 0.5f);
    const float rest = luma * (1 - factor);
    red[i] = whole(red[i] * factor + rest);
    green[i] = whole(green[i] * factor + rest);
    blue[i] = whole(blue[i] * factor + rest);
  }
}

inline float turned(float base, float own, float following, float preceding, float turn, float low, float high) {
  const float sign = following > preceding ? 1.0f : (following < preceding ? -1.0f : 0.0f);
  return whole(std::min(std::max(base + 2 * own - turn * sign, low), high) + 0.5f);
}

// datasets/pixels/batch_photometric.py derives this formula.
VECTORIZED void turn_hue_row(float* red, float* green, float* blue, float six_shifts, int length) {
  for (int i = 0; i < length; ++i) {
    const float r = red[i], g = green[i], b = blue[i];
    const float high = std::max(std::max(r, g), b), low = std::min(std::min(r, g), b);
    const float base = high + low - r - g - b, turn = (high - low) * six_shifts;
    red[i] = turned(base, r, g, b, turn, low, high);
    green[i] = turned(base, g, b, r, turn, low, high);
    blue[i] = turned(base, b, r, g, turn, low, high);
  }
}

VECTORIZED void weighted_row(const float* row, float weight, float* sum, int length) {
  for (int i = 0; i < length; ++i) sum[i] = weight * row[i];
}

VECTORIZED void add_both_rows(const float* first, const float* second, float weight, float* sum, int length) {
  for (int i = 0; i < length; ++i) sum[i] += weight * (first[i] + second[i]);
}

VECTORIZED void round_row(const float* values, uint8_t* out, int length) {
  for (int i = 0; i < length; ++i) out[i] = static_cast<uint8_t>(static_cast<int>(values[i] + 0.5f));
}

VECTORIZED int64_t sum_of_whole(const float* values, int length) {
  int32_t total = 0;
  for (int i = 0; i < length; ++i) total += static_cast<int32_t>(values[i]);
  return total;
}

enum Kind { kBrightness, kContrast, kSaturation, kHue };

struct Step {
  int32_t kind;
  float strength;
};

// The mean luma of planes of whole numbers, rounded to a whole number.
float mean_luma(float* const* planes, int height, int width) {
  double luma = 0;
  for (int channel = 0; channel < 3; ++channel) {
    int64_t total = 0;
    for (int y = 0; y < height; ++y) total += sum_of_whole(planes[channel] + static_cast<size_t>(y) * width, width);
    luma += kLuma[channel] * static_cast<double>(total);
  }
  return static_cast<float>(std::floor(luma / height / width + 0.5));
}

// One step for one row; ``grey`` is the mean luma, for contrast.
void change_row(const Step& step, float* red, float* green, float* blue, float grey, int length) {
  if (step.kind == kSaturation) {
    saturate_row(red, green, blue, step.strength, length);
  } else if (step.kind == kHue) {
    turn_hue_row(red, green, blue, 6 * step.strength, length);
  } else {
    const float rest = step.kind == kContrast ? grey * (1 - step.strength) : 0.0f;
    for (float* plane : {red, green, blue}) scale_row(plane, step.strength, rest, length);
  }
}

// Blurs one plane horizontally, then vertically; the pixels at the border are repeated beyond it.
void blur_plane(float* plane, int height, int width, const float* taps, int radius, float* across) {
  std::vector<float> padded(width + 2 * radius);
  for (int y = 0; y < height; ++y) {
    const float* row = plane + static_cast<size_t>(y) * width;
    std::fill_n(padded.begin(), radius, row[0]);
    std::copy_n(row, width, padded.begin() + radius);
    std::fill_n(padded.end() - radius, radius, row[width - 1]);
    float* sum = across + static_cast<size_t>(y) * width;
    const float* middle = padded.data() + radius;
    weighted_row(middle, taps[0], sum, width);
    for (int i = 1; i <= radius; ++i) add_both_rows(middle - i, middle + i, taps[i], sum, width);
  }
  for (int y = 0; y < height; ++y) {
    float* sum = plane + static_cast<size_t>(y) * width;
    weighted_row(across + static_cast<size_t>(y) * width, taps[0], sum, width);
    for (int i = 1; i <= radius; ++i) {
      const size_t above = std::max(y - i, 0), below = std::min(y + i, height - 1);
      add_both_rows(across + above * width, across + below * width, taps[i], sum, width);
    }
  }
}

}  // namespace

extern "C" {

// The rectangle ``box`` (xyxy in pixels, with fractions) of a picture [height, width, 3], as [out_height, out_width, 3].
void resample(const uint8_t* picture, int height, int width, const double* box, uint8_t* out, int out_height,
              int out_width) {
  const Filter down = make_filter(box[1], box[3], height, out_height);
  const Filter across = make_filter(box[0], box[2], width, out_width);
  const int left = across.first.front(), right = across.first.back() + across.count.back();
  std::vector<float> row(static_cast<size_t>(right - left) * 3);
  std::vector<Pixel> pixels(right - left);
  for (int y = 0; y < out_height; ++y) {
    std::fill(row.begin(), row.end(), 0.0f);
    for (int j = 0; j < down.count[y]; ++j) {
      const uint8_t* source = picture + (static_cast<size_t>(down.first[y] + j) * width + left) * 3;
      add_row(source, down.weights[static_cast<size_t>(y) * down.taps + j], row.data(), static_cast<int>(row.size()));
    }
    widen_row(row.data(), pixels.data(), right - left);
    resample_row(pixels.data(), across, left, out + static_cast<size_t>(y) * out_width * 3, out_width);
  }
}

// Changes the colours of a picture [height, width, 3] and blurs it (radius 0: no blur), into planes [3, height, width].
void change(const uint8_t* picture, int height, int width, const Step* steps, int num_steps, const float* taps, int radius,
            uint8_t* out) {
  const size_t area = static_cast<size_t>(height) * width;
  const std::unique_ptr<float[]> pixels(new float[3 * area]);
  float* planes[3] = {pixels.get(), pixels.get() + area, pixels.get() + 2 * area};
  for (int y = 0; y < height; ++y) {
    const size_t start = static_cast<size_t>(y) * width;
    unpack_row(picture + 3 * start, planes[0] + start, planes[1] + start, planes[2] + start, width);
  }
  for (int done = 0, next; done < num_steps; done = next) {
    // One pass over the rows: this step and all that follow, up to the next that needs the mean luma of the result.
    const float grey = steps[done].kind == kContrast ? mean_luma(planes, height, width) : 0;
    for (next = done + 1; next < num_steps && steps[next].kind != kContrast;) ++next;
    for (size_t start = 0; start < area; start += width)
      for (int i = done; i < next; ++i)
        change_row(steps[i], planes[0] + start, planes[1] + start, planes[2] + start, grey, width);
  }
  if (radius > 0) {
    const std::unique_ptr<float[]> across(new float[area]);
    for (float* plane : planes) blur_plane(plane, height, width, taps, radius, across.get());
  }
  for (size_t start = 0; start < 3 * area; start += width) round_row(pixels.get() + start, out + start, width);
}

}  // extern "C"
