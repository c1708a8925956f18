package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setting is where the value of a key is kept.
type setting struct {
	// set checks a value, as package toml has it, and stores it. Its error says what
	// is wrong, what is wanted, and what may have been meant.
	set func(value any) error
	get func() any // in the form that it has in the file
	// file is the path of a file that holds a secret, nil of other values.
	file *string
}

// settingOf keeps in to what parse makes of a value.
func settingOf[T any](to *T, parse func(value any) (T, error)) setting {
	set := func(value any) error {
		parsed, err := parse(value)
		if err == nil {
			*to = parsed
		}
		return err
	}
	return setting{set: set, get: func() any { return form(*to) }}
}

// form is a value as the file has it.
func form(value any) any {
	switch v := value.(type) {
	case time.Duration:
		return humanDuration(v)
	case fmt.Stringer:
		return v.String()
	}
	return value
}

func boolean(to *bool) setting {
	return settingOf(to, func(value any) (bool, error) {
		b, ok := value.(bool)
		if !ok {
			return b, fmt.Errorf("%s is not a boolean: want true or false, without quotes", show(value))
		}
		return b, nil
	})
}

// text takes a string that check finds nothing wrong with.
func text(to *string, check func(string) error) setting {
	return settingOf(to, func(value any) (string, error) {
		s, ok := value.(string)
		if !ok {
			return s, fmt.Errorf("%s is not a string: want one in quotes", show(value))
		}
		return s, check(s)
	})
}

// word takes one of the words.
func word(to *string, words ...string) setting { return settingOf(to, wordOf(words)) }

func notOneOf(value any, words []string) error {
	s, ok := value.(string)
	if !ok {
		return fmt.Errorf("%s is not a string: want %s", show(value), alternatives(words))
	}
	if meant, ok := closest(s, words); ok {
		return fmt.Errorf("%s is not known: want %s; did you mean %q?", show(s), alternatives(words), meant)
	}
	return fmt.Errorf("%s is not known: want %s", show(s), alternatives(words))
}

// integer takes a whole number from least to most.
func integer[T int | uint32](to *T, least, most T) setting {
	return settingOf(to, func(value any) (T, error) {
		n, ok := value.(int64)
		if !ok {
			return 0, fmt.Errorf("%s is not a whole number: want one from %d to %d, without quotes",
				show(value), least, most)
		}
		if n < int64(least) || n > int64(most) {
			return 0, fmt.Errorf("%d is out of range: want %d to %d", n, least, most)
		}
		return T(n), nil
	})
}

// duration takes a time from least to most, such as "250ms".
func duration(to *time.Duration, least, most time.Duration) setting {
	return settingOf(to, func(value any) (time.Duration, error) {
		d, err := parseDuration(value)
		if err == nil && (d < least || d > most) {
			err = fmt.Errorf("%q is out of range: want %s to %s", humanDuration(d), humanDuration(least), humanDuration(most))
		}
		return d, err
	})
}

// durationOrZero takes a time from least to most, or none.
func durationOrZero(to *time.Duration, least, most time.Duration) setting {
	return settingOf(to, func(value any) (time.Duration, error) {
		d, err := parseDuration(value)
		if err == nil && d != 0 && (d < least || d > most) {
			err = fmt.Errorf("%q is out of range: want %s to %s, or \"0s\"", humanDuration(d), humanDuration(least), humanDuration(most))
		}
		return d, err
	})
}

func parseDuration(value any) (time.Duration, error) {
	switch v := value.(type) {
	case int64, float64:
		return 0, fmt.Errorf("%v has no unit: want a string with a unit, such as \"%vs\"", v, v)
	case string:
		if d, err := time.ParseDuration(v); err == nil {
			return d, nil
		}
		if _, err := strconv.ParseFloat(v, 64); err == nil {
			return 0, fmt.Errorf("%s has no unit: want one of us, ms, s, m and h, such as %q", show(v), v+"s")
		}
		return 0, fmt.Errorf("%s is not a duration: want a number with a unit (us, ms, s, m or h), such as \"10s\"", show(v))
	}
	return 0, fmt.Errorf("%s is not a duration: want a string with a unit, such as \"10s\"", show(value))
}

// humanDuration writes d as people do in the file: "5m" and not "5m0s".
func humanDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// list takes from least to most different values, each as parse makes it.
func list[T comparable](to *[]T, least, most int, parse func(any) (T, error)) setting {
	set := func(value any) error {
		values, ok := value.([]any)
		if !ok {
			return fmt.Errorf("%s is not a list: want values in brackets, such as %s", show(value), bracketed(value))
		}
		if len(values) < least {
			return fmt.Errorf("is empty: want at least %d value", least)
		}
		if len(values) > most {
			return fmt.Errorf("has %d values: want at most %d", len(values), most)
		}
		var parsed []T
		var problems []error
		for _, v := range values {
			p, err := parse(v)
			if err == nil && slices.Contains(parsed, p) {
				err = fmt.Errorf("%s is listed twice", show(v))
			}
			if err != nil {
				problems = append(problems, err)
				continue
			}
			parsed = append(parsed, p)
		}
		if problems != nil {
			return errors.Join(problems...)
		}
		*to = parsed
		return nil
	}
	return setting{set: set, get: func() any {
		all := make([]any, 0, len(*to)) // a list, even if it is empty
		for _, v := range *to {
			all = append(all, form(v))
		}
		return all
	}}
}

// bracketed is what a list that was written without brackets should look like.
func bracketed(value any) string {
	if _, ok := value.(string); ok {
		return "[" + show(value) + "]"
	}
	return `["a", "b"]`
}

// named makes a parser of the names of values, for a list.
func named[T fmt.Stringer](values []T) func(any) (T, error) {
	var words []string
	for _, v := range values {
		words = append(words, v.String())
	}
	return func(value any) (T, error) {
		for i, word := range words {
			if value == word {
				return values[i], nil
			}
		}
		var none T
		return none, notOneOf(value, words)
	}
}

// wordOf makes a parser of words that stand for themselves.
func wordOf(words []string) func(any) (string, error) {
	return func(value any) (string, error) {
		if s, ok := value.(string); ok && slices.Contains(words, s) {
			return s, nil
		}
		return "", notOneOf(value, words)
	}
}

// show is a value as a message has it: short, and without control characters.
func show(value any) string {
	switch v := value.(type) {
	case string:
		const longest = 60
		if r := []rune(v); len(r) > longest {
			v = string(r[:longest]) + "…"
		}
		return strconv.Quote(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	case time.Time:
		return "a date or time"
	}
	return fmt.Sprint(value)
}

// alternatives lists words: "a", "b" or "c".
func alternatives(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(w))
	}
	return b.String()
}
