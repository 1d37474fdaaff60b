// One pyramid level of the patch search and of the refinement on a CPU: the maths of inverse_search.py, which is the
// definition. All pixels of a patch move alike, so that a moved patch is a block of the image with one pair of
// bilinear weights. Compiled by selective_scan/build.py, called by inverse_search_cpp.py; float32, rows contiguous.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct SearchArguments {  // mirrored in inverse_search_cpp.py, as is RefineArguments
  int64_t count, height, width, steps, candidate_stride, threads;
  float damping, max_step, max_residual, densify_sigma;
  const float *source, *target, *flow;  // [count, h, w] twice, [count, 2, h, w]
  float* result;                        // [count, 2, h, w]
};

struct RefineArguments {
  int64_t count, height, width, warps, sweeps, threads;
  float gradient_floor, robust, smoothness, edge_falloff, overshoot, border;
  const float *source, *target, *flow;
  float* result;
};

namespace {

typedef float V __attribute__((vector_size(32)));  // a row of a patch
typedef float VU __attribute__((vector_size(32), aligned(4), may_alias));
typedef std::vector<float> Image;

constexpr int64_t P = 8, kStride = 4;      // patch and distance of patches, px
constexpr int64_t kBefore = 9, kAfter = 10;  // border of a padded image: a patch further out sees the same

inline V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
inline void store(float* p, V x) { *reinterpret_cast<VU*>(p) = x; }
inline float sum(V x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }
inline int64_t held(int64_t i, int64_t size) { return std::min(std::max<int64_t>(i, 0), size - 1); }

struct Padded {  // an image with its border continued
  int64_t height, width, stride;
  Image pixels;
  Padded(const float* image, int64_t h, int64_t w)
      : height(h), width(w), stride(w + kBefore + kAfter), pixels((h + kBefore + kAfter) * stride) {
    for (int64_t y = -kBefore; y < h + kAfter; ++y) {
      const float* from = image + held(y, h) * w;
      float* to = &pixels[(y + kBefore) * stride];
      std::fill(to, to + kBefore, from[0]);
      std::copy(from, from + w, to + kBefore);
      std::fill(to + kBefore + w, to + stride, from[w - 1]);
    }
  }
  const float* at(int64_t y, int64_t x) const { return &pixels[(y + kBefore) * stride + x + kBefore]; }

  // The patch whose first pixel lies at (x, y), bilinear. NaN becomes the border.
  void sample(float x, float y, V* out) const {
    x = std::min(std::max(-float(kBefore), x), float(width));
    y = std::min(std::max(-float(kBefore), y), float(height));
    const float left = std::floor(x), top = std::floor(y), fx = x - left, fy = y - top;
    const float* row = at(int64_t(top), int64_t(left));
    V above = load(row) * (1 - fx) + load(row + 1) * fx;
    for (int64_t j = 0; j < P; ++j) {
      row += stride;
      const V below = load(row) * (1 - fx) + load(row + 1) * fx;
      out[j] = above * (1 - fy) + below * fy;
      above = below;
    }
  }
};

struct Vector {
  float x, y;
};

class Search {
 public:
  Search(const SearchArguments& a, int64_t k)
      : a_(a), h_(a.height), w_(a.width), rows_((h_ + kStride - 1) / kStride + 1),
        columns_((w_ + kStride - 1) / kStride + 1), source_(a.source + k * h_ * w_, h_, w_),
        target_(a.target + k * h_ * w_, h_, w_), flow_(a.flow + k * 2 * h_ * w_), result_(a.result + k * 2 * h_ * w_),
        patches_(rows_ * columns_) {}

  void run() {
    begin();
    for (auto& p : patches_) descend(p);
    propagate();
    densify();
  }

 private:
  struct Patch {
    int64_t x, y;  // of its first pixel
    V values[P], inside[P], few[P];  // few: inside, and one of the columns that candidates are compared on
    Vector start, u, next;
    float count, few_count;
  };

  // Positions, and the mean of the flow over each patch as where it starts.
  void begin() {
    const int64_t across = columns_ + 1;
    std::vector<Vector> blocks((rows_ + 1) * across);  // means over 4×4 px
    for (int64_t i = 0; i <= rows_; ++i)
      for (int64_t j = 0; j <= columns_; ++j) {
        Vector total = {0, 0};
        for (int64_t y = (i - 1) * kStride; y < i * kStride; ++y)
          for (int64_t x = (j - 1) * kStride; x < j * kStride; ++x) {
            const int64_t at = held(y, h_) * w_ + held(x, w_);
            total.x += flow_[at], total.y += flow_[h_ * w_ + at];
          }
        blocks[i * across + j] = {total.x / 16, total.y / 16};
      }
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < columns_; ++j) {
        const Vector *b = &blocks[i * across + j], *below = b + across;
        Patch& p = patches_[i * columns_ + j];
        p.x = (j - 1) * kStride, p.y = (i - 1) * kStride;
        p.u = p.start = {(b[0].x + b[1].x + below[0].x + below[1].x) / 4, (b[0].y + b[1].y + below[0].y + below[1].y) / 4};
      }
  }

  static void center(V* x, const Patch& p) {
    V total = {};
    for (int64_t j = 0; j < P; ++j) total += x[j] = x[j] * p.inside[j];
    const float mean = sum(total) / p.count;
    for (int64_t j = 0; j < P; ++j) x[j] -= p.inside[j] * mean;
  }

  void descend(Patch& p) const {
    V count = {}, few = {}, few_count = {}, gx[P], gy[P], xx = {}, xy = {}, yy = {};
    for (int64_t i = 0; i < P; i += a_.candidate_stride) few[i] = 1;
    for (int64_t j = 0; j < P; ++j) {
      const int64_t y = p.y + j;
      for (int64_t i = 0; i < P; ++i) p.inside[j][i] = y >= 0 && y < h_ && p.x + i >= 0 && p.x + i < w_;
      p.few[j] = p.inside[j] * few;
      count += p.inside[j], few_count += p.few[j];
      const float* row = source_.at(y, p.x);
      p.values[j] = load(row);
      gx[j] = 0.5f * (load(row + 1) - load(row - 1));
      gy[j] = 0.5f * (load(row + source_.stride) - load(row - source_.stride));
    }
    p.count = sum(count), p.few_count = sum(few_count);
    center(gx, p), center(gy, p);
    for (int64_t j = 0; j < P; ++j) xx += gx[j] * gx[j], xy += gx[j] * gy[j], yy += gy[j] * gy[j];
    const float a = sum(xx) + a_.damping, b = sum(xy), c = sum(yy) + a_.damping, inverse = 1 / (a * c - b * b);
    V to_x[P], to_y[P];
    for (int64_t j = 0; j < P; ++j)
      to_x[j] = inverse * (c * gx[j] - b * gy[j]), to_y[j] = inverse * (a * gy[j] - b * gx[j]);
    for (int64_t step = 0; step < a_.steps; ++step) {
      V values[P], x = {}, y = {};
      target_.sample(p.x + p.u.x, p.y + p.u.y, values);
      for (int64_t j = 0; j < P; ++j) {
        const V residual = values[j] - p.values[j];
        x += to_x[j] * residual, y += to_y[j] * residual;
      }
      p.u.x -= sum(x), p.u.y -= sum(y);
    }
    p.u.x = std::min(std::max(p.u.x, p.start.x - a_.max_step), p.start.x + a_.max_step);
    p.u.y = std::min(std::max(p.u.y, p.start.y - a_.max_step), p.start.y + a_.max_step);
  }

  // Σ min(|residual − its mean|, max_residual) over every n-th column.
  float cost(const Patch& p, Vector u) const {
    V residual[P], total = {};
    target_.sample(p.x + u.x, p.y + u.y, residual);
    for (int64_t j = 0; j < P; ++j) total += residual[j] = (residual[j] - p.values[j]) * p.few[j];
    const V mean = V{} + sum(total) / p.few_count, bound = V{} + a_.max_residual;
    total = V{};
    for (int64_t j = 0; j < P; ++j) {
      V x = residual[j] - p.few[j] * mean;
      x = x < 0 ? -x : x;
      total += x < bound ? x : bound;
    }
    return sum(total);
  }

  void propagate() {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < columns_; ++j) {
        Patch& p = patches_[i * columns_ + j];
        const auto u = [&](int64_t y, int64_t x) { return patches_[held(y, rows_) * columns_ + held(x, columns_)].u; };
        const Vector candidates[6] = {p.u, p.start, u(i, j + 1), u(i, j - 1), u(i + 1, j), u(i - 1, j)};
        float least = INFINITY;
        for (const Vector candidate : candidates) {
          const float x = cost(p, candidate);
          if (x < least) least = x, p.next = candidate;
        }
      }
    for (auto& p : patches_) p.u = p.next;
  }

  void densify() {
    const int64_t stride = (columns_ + 1) * kStride, size = (rows_ + 1) * kStride * stride;
    Image sums(3 * size);
    for (const auto& p : patches_) {
      V residual[P];
      target_.sample(p.x + p.u.x, p.y + p.u.y, residual);
      for (int64_t j = 0; j < P; ++j) residual[j] -= p.values[j];
      center(residual, p);
      for (int64_t j = 0; j < P; ++j) {
        const V weight = p.inside[j] / (a_.densify_sigma * a_.densify_sigma + residual[j] * residual[j]);
        float* at = &sums[(p.y + kStride + j) * stride + p.x + kStride];
        store(at, load(at) + weight * p.u.x);
        store(at + size, load(at + size) + weight * p.u.y);
        store(at + 2 * size, load(at + 2 * size) + weight);
      }
    }
    for (int64_t y = 0; y < h_; ++y)
      for (int64_t x = 0; x < w_; ++x) {
        const float* at = &sums[(y + kStride) * stride + x + kStride];
        result_[y * w_ + x] = at[0] / at[2 * size];
        result_[h_ * w_ + y * w_ + x] = at[size] / at[2 * size];
      }
  }

  const SearchArguments& a_;
  const int64_t h_, w_, rows_, columns_;
  const Padded source_, target_;
  const float* flow_;
  float* result_;
  std::vector<Patch> patches_;
};

class Refine {
 public:
  Refine(const RefineArguments& a, int64_t k)
      : a_(a), h_(a.height), w_(a.width), n_(h_ * w_), source_(a.source + k * n_), flow_(a.flow + 2 * k * n_),
        result_(a.result + 2 * k * n_) {
    gradients(source_, gradient_);
    Image other[2];
    gradients(a.target + k * n_, other);
    other_.resize(2 * n_);
    for (int64_t i = 0; i < n_; ++i) other_[2 * i] = other[0][i], other_[2 * i + 1] = other[1][i];
    for (auto* images : {tensor_, data_}) for (int64_t c = 0; c < 5; ++c) images[c].resize(n_);
    for (auto* image : {&edge_x_, &edge_y_, &own_[0], &own_[1], &cross_, &fixed_[0], &fixed_[1]}) image->resize(n_);
    constants();
  }

  void run() {
    std::copy(flow_, flow_ + 2 * n_, result_);
    for (int64_t warp = 0; warp < a_.warps; ++warp) {
      data();
      for (int64_t c = 0; c < 5; ++c) box(data_[c]);
      system();
      sweeps();
    }
  }

 private:
  void gradients(const float* image, Image* out) const {  // central differences, the border continued
    out[0].resize(n_), out[1].resize(n_);
    for (int64_t y = 0; y < h_; ++y) {
      const float *row = image + y * w_, *above = image + held(y - 1, h_) * w_, *below = image + held(y + 1, h_) * w_;
      float *dx = &out[0][y * w_], *dy = &out[1][y * w_];
#pragma omp simd
      for (int64_t x = 1; x < w_ - 1; ++x) dx[x] = 0.5f * (row[x + 1] - row[x - 1]);
      dx[0] = 0.5f * (row[1] - row[0]), dx[w_ - 1] = 0.5f * (row[w_ - 1] - row[w_ - 2]);
#pragma omp simd
      for (int64_t x = 0; x < w_; ++x) dy[x] = 0.5f * (below[x] - above[x]);
    }
  }

  // Everything that does not depend on the flow.
  void constants() {
    Image second[2][2];
    for (int64_t c = 0; c < 2; ++c) gradients(gradient_[c].data(), second[c]);
    for (int64_t c = 0; c < 2; ++c) {
      norm_[c].resize(n_), toward_[c][0].resize(n_), toward_[c][1].resize(n_);
      const float *dx = second[c][0].data(), *dy = second[c][1].data();
      float *norm = norm_[c].data(), *tx = toward_[c][0].data(), *ty = toward_[c][1].data();
      float *xx = tensor_[0].data(), *xy = tensor_[1].data(), *yy = tensor_[2].data();
      const float floor = a_.gradient_floor * a_.gradient_floor;
#pragma omp simd
      for (int64_t i = 0; i < n_; ++i) {
        norm[i] = 1 / (dx[i] * dx[i] + dy[i] * dy[i] + floor);
        tx[i] = norm[i] * dx[i], ty[i] = norm[i] * dy[i];
        xx[i] += tx[i] * dx[i], xy[i] += tx[i] * dy[i], yy[i] += ty[i] * dy[i];
      }
    }
    // Weights to the right and down; none across the frame's border.
    for (int64_t y = 0; y < h_; ++y)
      for (int64_t x = 0; x < w_; ++x) {
        const float* at = source_ + y * w_ + x;
        if (x < w_ - 1) edge_x_[y * w_ + x] = a_.smoothness * std::exp(-a_.edge_falloff * std::fabs(at[1] - at[0]));
        if (y < h_ - 1) edge_y_[y * w_ + x] = a_.smoothness * std::exp(-a_.edge_falloff * std::fabs(at[w_] - at[0]));
      }
  }

  // The linearized data term of every pixel: [xx, xy, yy, x r, y r].
  void data() {
    const float unit_x = 2.f / (w_ - 1), unit_y = 2.f / (h_ - 1), edge = 1 + a_.border;
    const float *u = result_, *v = result_ + n_;
    float *seen = data_[0].data(), *r[2] = {data_[3].data(), data_[4].data()};
    for (int64_t y = 0; y < h_; ++y)
      for (int64_t x = 0; x < w_; ++x) {
        const int64_t i = y * w_ + x;
        const float to_x = x + u[i], to_y = y + v[i];
        seen[i] = std::fabs(to_x * unit_x - 1) <= edge && std::fabs(to_y * unit_y - 1) <= edge;
        const float cx = std::min(std::max(0.f, to_x), float(w_ - 1)), cy = std::min(std::max(0.f, to_y), float(h_ - 1));
        const int64_t left = int64_t(cx), top = int64_t(cy);
        const float fx = cx - left, fy = cy - top;
        const int64_t right = 2 * (left < w_ - 1), below = 2 * w_ * (top < h_ - 1);
        const float* at = &other_[2 * (top * w_ + left)];
        for (int64_t c = 0; c < 2; ++c) {
          const float upper = at[c] * (1 - fx) + at[right + c] * fx;
          const float lower = at[below + c] * (1 - fx) + at[below + right + c] * fx;
          r[c][i] = upper * (1 - fy) + lower * fy;
        }
      }
    const float robust = a_.robust * a_.robust, *g[2] = {gradient_[0].data(), gradient_[1].data()};
    const float *norm[2] = {norm_[0].data(), norm_[1].data()};
    const float *tx[2] = {toward_[0][0].data(), toward_[1][0].data()}, *ty[2] = {toward_[0][1].data(), toward_[1][1].data()};
    const float *xx = tensor_[0].data(), *xy = tensor_[1].data(), *yy = tensor_[2].data();
    float *to_xx = data_[0].data(), *to_xy = data_[1].data(), *to_yy = data_[2].data();
#pragma omp simd
    for (int64_t i = 0; i < n_; ++i) {
      const float r0 = r[0][i] - g[0][i], r1 = r[1][i] - g[1][i];
      const float psi = seen[i] / std::sqrt(r0 * r0 * norm[0][i] + r1 * r1 * norm[1][i] + robust);
      to_xx[i] = psi * xx[i], to_xy[i] = psi * xy[i], to_yy[i] = psi * yy[i];
      r[0][i] = psi * (tx[0][i] * r0 + tx[1][i] * r1), r[1][i] = psi * (ty[0][i] * r0 + ty[1][i] * r1);
    }
  }

  // Means over 5×5 px, the border continued, in place.
  void box(Image& image) {
    Image padded(w_ + 4);
    wide_.resize(n_);
    for (int64_t y = 0; y < h_; ++y) {
      const float* row = &image[y * w_];
      padded[0] = padded[1] = row[0], padded[w_ + 2] = padded[w_ + 3] = row[w_ - 1];
      std::copy(row, row + w_, padded.begin() + 2);
      const float* p = padded.data();
      float* out = &wide_[y * w_];
#pragma omp simd
      for (int64_t x = 0; x < w_; ++x) out[x] = p[x] + p[x + 1] + p[x + 2] + p[x + 3] + p[x + 4];
    }
    for (int64_t y = 0; y < h_; ++y) {
      const float* rows[5];
      for (int64_t j = 0; j < 5; ++j) rows[j] = &wide_[held(y + j - 2, h_) * w_];
      float* out = &image[y * w_];
#pragma omp simd
      for (int64_t x = 0; x < w_; ++x)
        out[x] = (rows[0][x] + rows[1][x] + rows[2][x] + rows[3][x] + rows[4][x]) * (1 / 25.f);
    }
  }

  // (data + Σ w) u = data · flow − b + Σ w u_neighbor, 2×2 per pixel, inverted.
  void system() {
    const int64_t margin = w_ + 1;
    for (auto* image : {&right_, &down_}) image->assign(n_ + 2 * margin, 0);
    const float *u = result_, *v = result_ + n_, robust = a_.robust * a_.robust;
    float *right = right_.data() + margin, *down = down_.data() + margin;
    const float *edge_x = edge_x_.data(), *edge_y = edge_y_.data();
#pragma omp simd
    for (int64_t i = 0; i < n_ - 1; ++i) {
      const float du = u[i + 1] - u[i], dv = v[i + 1] - v[i];
      right[i] = edge_x[i] / std::sqrt(du * du + dv * dv + robust);
    }
#pragma omp simd
    for (int64_t i = 0; i < n_ - w_; ++i) {
      const float du = u[i + w_] - u[i], dv = v[i + w_] - v[i];
      down[i] = edge_y[i] / std::sqrt(du * du + dv * dv + robust);
    }
    const float *xx = data_[0].data(), *xy = data_[1].data(), *yy = data_[2].data(), *bx = data_[3].data(), *by = data_[4].data();
    float *f0 = fixed_[0].data(), *f1 = fixed_[1].data(), *own0 = own_[0].data(), *own1 = own_[1].data(), *cross = cross_.data();
#pragma omp simd
    for (int64_t i = 0; i < n_; ++i) {
      f0[i] = xx[i] * u[i] + xy[i] * v[i] - bx[i], f1[i] = xy[i] * u[i] + yy[i] * v[i] - by[i];
      const float total = right[i] + right[i - 1] + down[i] + down[i - w_];
      const float a = xx[i] + total, b = xy[i], c = yy[i] + total, inverse = 1 / (a * c - b * b + 1e-12f);
      own0[i] = c * inverse, own1[i] = a * inverse, cross[i] = -b * inverse;
    }
  }

  // Rows lie one after the other: what wraps around at a border has weight 0.
  void sweeps() {
    const int64_t margin = w_ + 1, size = n_ + 2 * margin;
    Image now(2 * size), before(2 * size);
    for (int64_t c = 0; c < 2; ++c) {
      std::copy(result_ + c * n_, result_ + (c + 1) * n_, &now[c * size + margin]);
      std::copy(result_ + c * n_, result_ + (c + 1) * n_, &before[c * size + margin]);
    }
    const float *right = right_.data() + margin, *down = down_.data() + margin, overshoot = a_.overshoot;
    const float *f0 = fixed_[0].data(), *f1 = fixed_[1].data(), *own0 = own_[0].data(), *own1 = own_[1].data(), *cross = cross_.data();
    for (int64_t sweep = 0; sweep < a_.sweeps; ++sweep) {
      const float *u = &now[margin], *v = &now[size + margin];
      float *to_u = &before[margin], *to_v = &before[size + margin];
#pragma omp simd
      for (int64_t i = 0; i < n_; ++i) {
        const float r = right[i], l = right[i - 1], d = down[i], t = down[i - w_];
        const float x = f0[i] + r * u[i + 1] + l * u[i - 1] + d * u[i + w_] + t * u[i - w_];
        const float y = f1[i] + r * v[i + 1] + l * v[i - 1] + d * v[i + w_] + t * v[i - w_];
        to_u[i] += overshoot * (own0[i] * x + cross[i] * y - to_u[i]);
        to_v[i] += overshoot * (own1[i] * y + cross[i] * x - to_v[i]);
      }
      std::swap(now, before);
    }
    for (int64_t c = 0; c < 2; ++c) std::copy(&now[c * size + margin], &now[c * size + margin] + n_, result_ + c * n_);
  }

  const RefineArguments& a_;
  const int64_t h_, w_, n_;
  const float *source_, *flow_;
  float* result_;
  Image gradient_[2], other_;  // other_: both components of the target's gradient per pixel
  Image norm_[2], toward_[2][2], tensor_[5], data_[5], edge_x_, edge_y_;
  Image right_, down_, own_[2], cross_, fixed_[2], wide_;
};

template <class Level, class Arguments>
void run_all(const Arguments& a) {
  if (a.threads <= 1) {  // never enters OpenMP, whose threads do not survive a fork
    for (int64_t k = 0; k < a.count; ++k) Level(a, k).run();
    return;
  }
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
  for (int64_t k = 0; k < a.count; ++k) Level(a, k).run();
}

}  // namespace

extern "C" void search_level(const SearchArguments* a) { run_all<Search>(*a); }
extern "C" void refine_level(const RefineArguments* a) { run_all<Refine>(*a); }
