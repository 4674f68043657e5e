// Instance norm, ReLU and 2 x 2 average pooling of one map after another: forward, backward, and backward of the backward.
//
// A map is one channel of one image, h x w numbers; weights and biases of channels are read at (map % channels). Formulas: block.py.
// A map belongs to one thread, so their number changes no bit. What is not a number stays so: relu(z) = z < 0 ? 0 : z.

#include <cmath>
#include <cstdint>

namespace {

struct Shape {
    int64_t maps, channels, h, w;
};

template <typename T>
T relu(T z) {
    return z < 0 ? 0 : z;
}

// x (maps, h, w) -> y (maps, h / 2, w / 2), mean (maps), rstd (maps)
template <typename T>
void forward(const T *x, const T *weight, const T *bias, T *y, T *mean, T *rstd, Shape s, int threads, T eps) {
    const int64_t n = s.h * s.w, ph = s.h / 2, pw = s.w / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t m = 0; m < s.maps; m++) {
        const T *map = x + m * n;
        T sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) sum += map[i];
        const T mu = sum / n;
#pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < n; i++) square += (map[i] - mu) * (map[i] - mu);
        const T r = 1 / std::sqrt(square / n + eps);
        mean[m] = mu, rstd[m] = r;
        const T a = weight[m % s.channels] * r, b = bias[m % s.channels] - mu * a;
        for (int64_t i = 0; i < ph; i++) {
            const T *top = map + 2 * i * s.w, *low = top + s.w;
            T *out = y + (m * ph + i) * pw;
#pragma omp simd
            for (int64_t j = 0; j < pw; j++) {
                const T above = relu(a * top[2 * j] + b) + relu(a * top[2 * j + 1] + b);
                const T below = relu(a * low[2 * j] + b) + relu(a * low[2 * j + 1] + b);
                out[j] = (above + below) / 4;
            }
        }
    }
}

// u = [g xh + b > 0] dy / 4 of a map, 0 where no pool covers it; its sum, and that of u xh
template <typename T>
void pulled(const T *map, const T *pooled, T *u, T g, T b, T mu, T r, Shape s, T &su, T &sux) {
    su = 0, sux = 0;
    if (s.h % 2 || s.w % 2)
        for (int64_t i = 0; i < s.h * s.w; i++) u[i] = 0;
    for (int64_t i = 0; i < s.h / 2; i++) {
        const T *top = map + 2 * i * s.w, *low = top + s.w, *grad = pooled + i * (s.w / 2);
        T *above = u + 2 * i * s.w, *below = above + s.w, sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
        for (int64_t j = 0; j < s.w / 2; j++) {
            const T down = grad[j] / 4, first = (top[2 * j] - mu) * r, second = (top[2 * j + 1] - mu) * r;
            const T third = (low[2 * j] - mu) * r, fourth = (low[2 * j + 1] - mu) * r;
            const T p = g * first + b > 0 ? down : 0, q = g * second + b > 0 ? down : 0;
            const T v = g * third + b > 0 ? down : 0, w = g * fourth + b > 0 ? down : 0;
            above[2 * j] = p, above[2 * j + 1] = q, below[2 * j] = v, below[2 * j + 1] = w;
            sum += (p + q) + (v + w), along += (p * first + q * second) + (v * third + w * fourth);
        }
        su += sum, sux += along;
    }
}

// dy (maps, h / 2, w / 2) -> dx (maps, h, w), and of each map its part of the gradients of weight and bias (maps)
template <typename T>
void backward(const T *dy, const T *x, const T *weight, const T *bias, const T *mean, const T *rstd, T *dx, T *dweight, T *dbias, Shape s,
              int threads) {
    const int64_t n = s.h * s.w, ph = s.h / 2, pw = s.w / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t m = 0; m < s.maps; m++) {
        const T *map = x + m * n, *pooled = dy + m * ph * pw;
        const T mu = mean[m], r = rstd[m], g = weight[m % s.channels], b = bias[m % s.channels];
        T *out = dx + m * n, su, sux;
        pulled(map, pooled, out, g, b, mu, r, s, su, sux);
        dbias[m] = su, dweight[m] = sux;
        const T mean_u = su / n, mean_ux = sux / n;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = g * r * (out[i] - mean_u - (map[i] - mu) * r * mean_ux);
    }
}

// v (maps, h, w), the cotangent of dx, and those of the gradients of weight and bias (channels) -> the gradients of dy, x and weight
template <typename T>
void twice(const T *v, const T *vweight, const T *vbias, const T *dy, const T *x, const T *weight, const T *bias, const T *mean,
           const T *rstd, T *ddy, T *dx, T *dweight, Shape s, int threads) {
    const int64_t n = s.h * s.w, ph = s.h / 2, pw = s.w / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t m = 0; m < s.maps; m++) {
        const T *map = x + m * n, *cotangent = v + m * n, *pooled = dy + m * ph * pw;
        const T mu = mean[m], r = rstd[m], g = weight[m % s.channels], b = bias[m % s.channels];
        const T alpha = vweight[m % s.channels], beta = vbias[m % s.channels];
        T *out = dx + m * n, *up = ddy + m * ph * pw;
        T su, sux, sv = 0, svx = 0, suv = 0;
        pulled(map, pooled, out, g, b, mu, r, s, su, sux);
#pragma omp simd reduction(+ : sv, svx, suv)
        for (int64_t i = 0; i < n; i++) sv += cotangent[i], svx += cotangent[i] * ((map[i] - mu) * r), suv += out[i] * cotangent[i];
        const T mean_ux = sux / n, mean_vx = svx / n, mean_v = sv / n;
        const T inner = suv - sv * su / n - svx * mean_ux;  // A
        const T of_u = alpha - g * r * mean_vx, of_v = -g * r * mean_ux;  // G = of_u u + of_v v
        const T mean_g = (of_u * su + of_v * sv) / n, along = (of_u * sux + of_v * svx + g * r * inner) / n;
        dweight[m] = r * inner;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = r * (of_u * out[i] + of_v * cotangent[i] - mean_g - (map[i] - mu) * r * along);
        const auto gradient = [=](T value, T c) {  // of a pixel: the gradient of its u
            const T xh = (value - mu) * r;
            return g * xh + b > 0 ? g * r * (c - mean_v - mean_vx * xh) + alpha * xh + beta : 0;
        };
        for (int64_t i = 0; i < ph; i++) {
            const T *top = map + 2 * i * s.w, *low = top + s.w, *above = cotangent + 2 * i * s.w, *below = above + s.w;
#pragma omp simd
            for (int64_t j = 0; j < pw; j++) {
                const T first = gradient(top[2 * j], above[2 * j]) + gradient(top[2 * j + 1], above[2 * j + 1]);
                const T second = gradient(low[2 * j], below[2 * j]) + gradient(low[2 * j + 1], below[2 * j + 1]);
                up[i * pw + j] = (first + second) / 4;
            }
        }
    }
}

}  // namespace

#define PASSES(T)                                                                                                                        \
    void forward_##T(const T *x, const T *g, const T *b, T *y, T *mean, T *rstd, int64_t maps, int64_t channels, int64_t h, int64_t w,   \
                     int threads, double eps) {                                                                                          \
        forward<T>(x, g, b, y, mean, rstd, {maps, channels, h, w}, threads, T(eps));                                                     \
    }                                                                                                                                    \
    void backward_##T(const T *dy, const T *x, const T *g, const T *b, const T *mean, const T *rstd, T *dx, T *dg, T *db, int64_t maps,  \
                      int64_t channels, int64_t h, int64_t w, int threads) {                                                             \
        backward<T>(dy, x, g, b, mean, rstd, dx, dg, db, {maps, channels, h, w}, threads);                                               \
    }                                                                                                                                    \
    void twice_##T(const T *v, const T *vg, const T *vb, const T *dy, const T *x, const T *g, const T *b, const T *mean, const T *rstd,  \
                   T *ddy, T *dx, T *dg, int64_t maps, int64_t channels, int64_t h, int64_t w, int threads) {                            \
        twice<T>(v, vg, vb, dy, x, g, b, mean, rstd, ddy, dx, dg, {maps, channels, h, w}, threads);                                      \
    }

extern "C" {
PASSES(float)
PASSES(double)
}
