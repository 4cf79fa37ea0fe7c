#include "src/rl/math_number.h"

#include <mpc.h>

#include <algorithm>
#include <map>
#include <vector>

namespace r1 {
namespace {

constexpr long kBits = 2048;
constexpr long kSure = 1900;  ///< numbers that agree in so many bits are the same
constexpr long kSeen = 1800;  ///< of two summands the smaller one must be within so many bits
constexpr std::size_t kLargestRational = 1 << 15;
constexpr long kNothing = -(1l << 62);

std::size_t bits(const mpq_class& q) {
    return mpz_sizeinbase(q.get_num_mpz_t(), 2) + mpz_sizeinbase(q.get_den_mpz_t(), 2);
}

long exponent(mpfr_srcptr x) {
    if (!mpfr_number_p(x)) throw Undefined{};
    return mpfr_zero_p(x) ? kNothing : mpfr_get_exp(x);
}

}  // namespace

struct Number::Complex {
    Complex() { mpc_init2(z, kBits); }
    Complex(const Complex& o) : Complex() { mpc_set(z, o.z, MPC_RNDNN); }
    Complex& operator=(const Complex&) = delete;
    ~Complex() { mpc_clear(z); }
    mpfr_ptr re() const { return mpc_realref(z); }
    mpfr_ptr im() const { return mpc_imagref(z); }
    long size() const { return std::max(exponent(re()), exponent(im())); }

    mutable mpc_t z;
};

Number::Number(mpq_class rational) : rational_(std::move(rational)) {
    if (bits(rational_) > kLargestRational) throw Undefined{};
}

Number Number::i() {
    Complex z;
    mpc_set_ui_ui(z.z, 0, 1, MPC_RNDNN);
    return kept(z, kNothing);
}

Number Number::pi() {
    Complex z;
    mpc_set_ui(z.z, 0, MPC_RNDNN);
    mpfr_const_pi(z.re(), MPFR_RNDN);
    return kept(z, kNothing);
}

/// z without what rounding left of a zero or behind an integer. Below 2^scale there is only
/// rounding.
Number Number::kept(const Complex& z, long scale) {
    const long re = exponent(z.re()), im = exponent(z.im());
    if (std::max(re, im) < scale - kSure || std::max(re, im) == kNothing) return 0;
    if (im < re - kSure) mpfr_set_zero(z.im(), 1);
    if (re < im - kSure) mpfr_set_zero(z.re(), 1);
    if (mpfr_zero_p(z.im()) && re > 0 && re < 64) {
        Complex rest;
        mpfr_rint(rest.re(), z.re(), MPFR_RNDN);
        mpfr_sub(rest.im(), z.re(), rest.re(), MPFR_RNDN);
        if (exponent(rest.im()) < re - kSure) {
            mpq_class whole;
            mpfr_get_z(whole.get_num_mpz_t(), rest.re(), MPFR_RNDN);
            return whole;
        }
    }
    Number result;
    result.complex_ = std::make_shared<const Complex>(z);
    return result;
}

Number::Complex Number::complex() const {
    if (complex_) return *complex_;
    Complex z;
    mpc_set_q(z.z, rational_.get_mpq_t(), MPC_RNDNN);
    return z;
}

int Number::sign() const {
    if (!complex_) return sgn(rational_);
    if (!mpfr_zero_p(complex_->im()) || mpfr_nan_p(complex_->re())) throw Undefined{};
    return mpfr_sgn(complex_->re());
}

Number Number::floor() const {
    mpq_class whole;
    if (!complex_) {
        mpz_fdiv_q(whole.get_num_mpz_t(), rational_.get_num_mpz_t(), rational_.get_den_mpz_t());
        return whole;
    }
    sign();
    if (complex_->size() > static_cast<long>(kLargestRational)) throw Undefined{};
    mpfr_get_z(whole.get_num_mpz_t(), complex_->re(), MPFR_RNDD);
    return whole;
}

Number Number::modulus() const {
    if (!complex_) return mpq_class(abs(rational_));
    Complex z;
    mpc_set_ui(z.z, 0, MPC_RNDNN);
    mpc_abs(z.re(), complex_->z, MPFR_RNDN);
    return kept(z, kNothing);
}

std::string Number::digits() const {
    if (!complex_) return rational_.get_str();
    std::unique_ptr<char, decltype(&mpc_free_str)> text(
        mpc_get_str(10, 500, complex_->z, MPC_RNDNN), &mpc_free_str);
    return text.get();
}

int Number::cost() const { return complex_ ? 4 : 1 + static_cast<int>(bits(rational_) / 256); }

Number operator+(const Number& a, const Number& b) {
    if (!a.complex_ && !b.complex_) return mpq_class(a.rational_ + b.rational_);
    if (a.is(0)) return b;
    if (b.is(0)) return a;
    const Number::Complex x = a.complex(), y = b.complex();
    Number::Complex z;
    mpc_add(z.z, x.z, y.z, MPC_RNDNN);
    const long of_x = x.size(), of_y = y.size();
    if (std::abs(of_x - of_y) > kSeen) throw Undefined{};
    return Number::kept(z, std::max(of_x, of_y));
}

Number operator*(const Number& a, const Number& b) {
    if (!a.complex_ && !b.complex_) return mpq_class(a.rational_ * b.rational_);
    Number::Complex z;
    mpc_mul(z.z, a.complex().z, b.complex().z, MPC_RNDNN);
    return Number::kept(z, kNothing);
}

Number operator/(const Number& a, const Number& b) {
    if (b.is(0)) throw Undefined{};
    if (!a.complex_ && !b.complex_) return mpq_class(a.rational_ / b.rational_);
    Number::Complex z;
    mpc_div(z.z, a.complex().z, b.complex().z, MPC_RNDNN);
    return Number::kept(z, kNothing);
}

Number power(const Number& base, const Number& exponent) {
    const mpq_class *b = base.rational(), *e = exponent.rational();
    if (e && e->get_den() == 1) {
        const mpz_class n = abs(e->get_num());
        if (base.is(0) && *e <= 0) throw Undefined{};
        if (base.is(0) || base.is(1)) return base;
        if (base.is(-1)) return mpz_odd_p(n.get_mpz_t()) ? -1 : 1;
        if (n * (b ? bits(*b) - 1 : 1) > kLargestRational) throw Undefined{};
        if (*e < 0) return 1 / power(base, mpq_class(n));
        Number result = 1, square = base;
        for (unsigned long k = n.get_ui(); k; k >>= 1) {
            if (k & 1) result = result * square;
            if (k > 1) square = square * square;
        }
        return result;
    }
    if (base.is(0) && exponent.sign() > 0) return 0;
    if (e && b && *b < 0 && mpz_odd_p(e->get_den_mpz_t()))
        return power(-1, mpq_class(e->get_num())) * power(mpq_class(-*b), exponent);
    if (e && *e == mpq_class(1, 2)) {
        Number::Complex z;
        mpc_sqrt(z.z, base.complex().z, MPC_RNDNN);
        return Number::kept(z, kNothing);
    }
    return elementary("exp", exponent * elementary("ln", base));
}

Number elementary(const std::string& function, const Number& x) {
    static const std::map<std::string, int (*)(mpc_ptr, mpc_srcptr, mpc_rnd_t)> kFunctions = {
        {"exp", mpc_exp},   {"ln", mpc_log},      {"sin", mpc_sin},     {"cos", mpc_cos},
        {"tan", mpc_tan},   {"arcsin", mpc_asin}, {"arccos", mpc_acos}, {"arctan", mpc_atan},
        {"sinh", mpc_sinh}, {"cosh", mpc_cosh},   {"tanh", mpc_tanh}};
    static const std::map<std::string, const char*> kReciprocals = {
        {"cot", "tan"}, {"sec", "cos"}, {"csc", "sin"}};
    if (const auto found = kReciprocals.find(function); found != kReciprocals.end())
        return 1 / elementary(found->second, x);
    if (function == "log" || function == "lg") return elementary("ln", x) / elementary("ln", 10);
    const auto found = kFunctions.find(function);
    if (found == kFunctions.end()) throw Undefined{};
    if (x.is(0) && function == "ln") throw Undefined{};
    const Number::Complex argument = x.complex();
    // Beyond these sizes a function takes long, or its value cannot be told from 0 or 1.
    if (function != "ln" && !x.is(0) && (argument.size() > 64 || argument.size() < -600))
        throw Undefined{};
    Number::Complex z;
    found->second(z.z, argument.z, MPC_RNDNN);
    return Number::kept(z, function == "exp" ? kNothing : 0);
}

}  // namespace r1
