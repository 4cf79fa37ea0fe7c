// The numbers that answers are compared in: rationals of any size, exactly (GMP), and what is
// irrational or complex to 2048 bits (MPC).
#pragma once
#include <gmpxx.h>

#include <memory>
#include <string>

namespace r1 {

/// Thrown where an expression has no value, or none that its bits can tell from another.
struct Undefined {};

/// Arithmetic throws Undefined rather than lose what distinguishes two numbers: where a rational
/// would pass 2^15 bits, and where a summand is too small to be seen beside the other. A sum that
/// cancels to its last bits is 0, and what agrees with an integer to its last bits is that integer.
class Number {
  public:
    Number(int value = 0) : rational_(value) {}
    Number(mpq_class rational);
    static Number i();
    static Number pi();

    /// Null where the number is irrational or complex.
    const mpq_class* rational() const { return complex_ ? nullptr : &rational_; }
    /// Of a real number; Undefined for another.
    int sign() const;
    /// Of a real number: the largest integer that is not above it.
    Number floor() const;
    Number modulus() const;
    /// The same text for the same number, which a hash may be taken of.
    std::string digits() const;
    /// What an operation on this number costs, in units of about a microsecond.
    int cost() const;

    friend Number operator+(const Number& a, const Number& b);
    friend Number operator*(const Number& a, const Number& b);
    friend Number operator/(const Number& a, const Number& b);
    friend Number operator-(const Number& a, const Number& b) { return a + Number(-1) * b; }
    friend bool operator==(const Number& a, const Number& b) { return (a - b).is(0); }
    bool is(int value) const { return !complex_ && rational_ == value; }
    /// Real where a real value exists: (-8)^(1/3) = -2.
    friend Number power(const Number& base, const Number& exponent);
    /// exp, ln, sin, arcsin, sinh, ...: the principal value. Undefined for a name it does not know.
    friend Number elementary(const std::string& function, const Number& x);

  private:
    struct Complex;
    static Number kept(const Complex& z, long scale);
    Complex complex() const;

    mpq_class rational_;
    std::shared_ptr<const Complex> complex_;
};

Number power(const Number& base, const Number& exponent);
Number elementary(const std::string& function, const Number& x);

}  // namespace r1
