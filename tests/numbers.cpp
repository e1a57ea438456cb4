// Tries csrc/numbers.h. `numbers STEP` prints the largest error of each function, in units of the last place, over every
// STEP-th float or double of its domain; `numbers widen` writes all 65536 half and then all bfloat16 numbers as floats;
// `numbers narrow` reads floats and writes each one as a half and as a bfloat16 number.

#include "../csrc/numbers.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

template <class T> struct Format;
template <> struct Format<float> { using Bits = uint32_t; using Exact = double; };
template <> struct Format<double> { using Bits = uint64_t; using Exact = long double; };

// How far a result is from the exact one, in units of the last place of the latter.
template <class T, class Exact> double distance(T got, Exact exact) {
    using Limits = std::numeric_limits<T>;
    int exponent;
    std::frexp(exact, &exponent);
    exponent = exponent < Limits::min_exponent ? Limits::min_exponent : exponent;
    return double(std::fabs(Exact(got) - exact) / std::ldexp(Exact(1), exponent - Limits::digits));
}

// Try the numbers of one sign from `first` on, away from zero, up to `last`.
template <class T, class F, class G> void try_all(const char* name, T first, T last, typename Format<T>::Bits step, F f, G g) {
    using Bits = typename Format<T>::Bits;
    double largest = 0;
    T where = 0;
    for (Bits u = bits<Bits>(first); u <= bits<Bits>(last) && u >= bits<Bits>(first); u += step) {
        const T x = bits<T>(u);
        const double error = distance(f(x), g(typename Format<T>::Exact(x)));
        if (!(error <= largest)) largest = error, where = x;
    }
    std::printf("%s %.4f %.9g\n", name, largest, double(where));
}

void print_errors(uint32_t step) {
    const uint64_t wide = uint64_t(step) << 36;
    try_all("exp", -0.0f, -87.33654f, step, [](float x) { return exp_(x); }, [](double x) { return std::exp(x); });
    try_all("expm1", -0.0f, -104.0f, step, [](float x) { return expm1_(x); }, [](double x) { return std::expm1(x); });
    try_all("log1p", 0.0f, 1e30f, step, [](float x) { return log1p_(x); }, [](double x) { return std::log1p(x); });
    try_all("log1p_unit", 0.0f, 1.0f, step, [](float x) { return log1p_unit(x); }, [](double x) { return std::log1p(x); });
    try_all("inverse_unit", 0.0f, 1.0f, step, [](float x) { return inverse_unit(x); }, [](double x) { return 1 / (1 + x); });
    try_all("exp64", -0.0, -708.39, wide, [](double x) { return exp_(x); }, [](long double x) { return std::exp(x); });
    try_all("expm164", -0.0, -708.39, wide, [](double x) { return expm1_(x); }, [](long double x) { return std::expm1(x); });
    try_all("log1p64", 0.0, 1e300, wide, [](double x) { return log1p_(x); }, [](long double x) { return std::log1p(x); });
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    std::printf("ends %g %g %g %g %g\n", exp_(0.0f), exp_(-inf), exp_(-200.0f), expm1_(-inf), log1p_(0.0f));
    std::printf("nan %d%d%d\n", exp_(nan) != exp_(nan), expm1_(nan) != expm1_(nan), log1p_(nan) != log1p_(nan));
}

template <class S> void widen_all() {
    std::vector<float> all;
    for (uint32_t u = 0; u < 1 << 16; u++) all.push_back(widen(S{uint16_t(u)}));
    std::fwrite(all.data(), sizeof(float), all.size(), stdout);
}

void narrow_all() {
    float x;
    while (std::fread(&x, sizeof x, 1, stdin) == 1) {
        half h;
        bf16 b;
        narrow(x, h), narrow(x, b);
        const uint16_t both[2] = {h.bits, b.bits};
        std::fwrite(both, sizeof both, 1, stdout);
    }
}

}  // namespace

int main(int, char** argv) {
    const std::string what = argv[1];
    if (what == "widen") widen_all<half>(), widen_all<bf16>();
    else if (what == "narrow") narrow_all();
    else print_errors(uint32_t(std::atoi(argv[1])));
}
