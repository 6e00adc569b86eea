package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxText bounds a configuration file, in bytes.
const maxText = 1 << 20

// decode reads text over c, and finds every unknown key, double key and value of
// the wrong type.
func decode(file string, text []byte, c *Config) Mistakes {
	d := decoder{file: file, lines: c.lines}
	if len(text) > maxText {
		d.bad(0, "", "the file is larger than %d bytes", maxText)
		return d.mistakes
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		line, msg := yamlError(err)
		d.bad(line, "", "%s", msg)
		return d.mistakes
	}
	if len(doc.Content) > 0 {
		d.value("", doc.Content[0], reflect.ValueOf(c).Elem())
	}
	return d.mistakes
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

func yamlError(err error) (int, string) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		line, _ := strconv.Atoi(m[1])
		return line, msg[len(m[0]):]
	}
	return 0, msg
}

type decoder struct {
	file     string
	lines    map[string]int
	mistakes Mistakes
}

func (d *decoder) bad(line int, key, format string, args ...any) {
	d.mistakes = append(d.mistakes, &Mistake{d.file, line, key, fmt.Sprintf(format, args...)})
}

func (d *decoder) value(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		d.bad(n.Line, path, "aliases are not supported")
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "key:" with nothing keeps the default
	}
	switch {
	case v.Type() == reflect.TypeFor[map[string]*Network]():
		d.networks(path, n, v)
	case v.Kind() == reflect.Struct:
		d.object(path, n, v)
	case v.Kind() == reflect.Slice:
		d.list(path, n, v)
	case n.Kind != yaml.ScalarNode:
		d.bad(n.Line, path, "must be %s", describe(v))
	default:
		if err := setScalar(v, n.Value); err != nil || v.Kind() == reflect.String && n.Tag == "!!bool" && n.Value != "yes" && n.Value != "no" && n.Value != "off" {
			d.bad(n.Line, path, "%q is not %s", n.Value, describe(v))
		}
	}
}

// pairs calls f for each key of a mapping, once.
func (d *decoder) pairs(path string, n *yaml.Node, f func(key string, k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.bad(n.Line, path, "must be a section with keys of its own")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		full := strings.TrimPrefix(path+"."+k.Value, ".")
		if first, ok := seen[k.Value]; ok {
			d.bad(k.Line, full, "is set twice (first on line %d)", first)
			continue
		}
		seen[k.Value] = k.Line
		d.lines[full] = k.Line
		f(full, k, n.Content[i+1])
	}
}

func (d *decoder) object(path string, n *yaml.Node, v reflect.Value) {
	d.pairs(path, n, func(full string, k, val *yaml.Node) {
		if f, ok := field(v, k.Value); ok {
			d.value(full, val, f)
			return
		}
		if near := nearest(k.Value, keysOf(v.Type())); near != "" {
			d.bad(k.Line, full, "unknown key; did you mean %q?", near)
		} else {
			d.bad(k.Line, full, "unknown key")
		}
	})
}

func (d *decoder) list(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.bad(n.Line, path, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		d.value(fmt.Sprintf("%s.%d", path, i), item, v.Index(i))
	}
}

func (d *decoder) networks(path string, n *yaml.Node, v reflect.Value) {
	all := map[string]*Network{}
	d.pairs(path, n, func(full string, k, val *yaml.Node) {
		network := &Network{}
		if val.Kind != yaml.MappingNode {
			d.bad(val.Line, full, "must be a section with keys of its own")
			return
		}
		d.pairs(full, val, func(string, *yaml.Node, *yaml.Node) {}) // for lines and doubles
		if err := network.UnmarshalYAML(val); err != nil {
			line, msg := yamlError(err)
			if line == 0 {
				line = k.Line
			}
			d.bad(line, full, "%s", msg)
			return
		}
		all[k.Value] = network
	})
	v.Set(reflect.ValueOf(all))
}

// override sets keys from flags and variables.
func (c *Config) override(list []Override) (m Mistakes) {
	for _, o := range list {
		v := reflect.ValueOf(c).Elem()
		ok := true
		for name := range strings.SplitSeq(o.Key, ".") {
			if v, ok = field(v, name); !ok {
				break
			}
		}
		if !ok {
			m = append(m, &Mistake{Text: fmt.Sprintf("%s: no such key %q", o.Source, o.Key)})
			continue
		}
		delete(c.lines, o.Key)
		c.sources[o.Key] = o.Source
		if err := setScalar(v, o.Value); err != nil {
			m = append(m, &Mistake{Text: fmt.Sprintf("%s: %q is not %s", o.Source, o.Value, describe(v))})
		}
	}
	return m
}

func setScalar(v reflect.Value, s string) error {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(s)
		if err == nil {
			v.SetInt(int64(d))
		}
		return err
	case v.Kind() == reflect.String:
		v.SetString(s)
		return nil
	case v.Kind() == reflect.Bool:
		switch s {
		case "true", "yes", "on", "1":
			v.SetBool(true)
		case "false", "no", "off", "0":
			v.SetBool(false)
		default:
			return errors.New("not a boolean")
		}
		return nil
	case v.Kind() == reflect.Int64:
		n, err := strconv.ParseInt(s, 10, 64)
		if err == nil {
			v.SetInt(n)
		}
		return err
	case v.Kind() == reflect.Slice: // from a variable: separated by commas
		parts := strings.Split(s, ",")
		if s == "" {
			parts = nil
		}
		v.Set(reflect.ValueOf(parts))
		return nil
	}
	return errors.New("cannot be set this way")
}

func describe(v reflect.Value) string {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		return `a duration such as "90s" or "12h"`
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.Kind() == reflect.Int64:
		return "a whole number"
	case v.Kind() == reflect.Struct:
		return "a section with keys of its own"
	}
	return "a text"
}

// field of a struct by its name in the file.
func field(v reflect.Value, name string) (reflect.Value, bool) {
	if v.Kind() != reflect.Struct {
		return reflect.Value{}, false
	}
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == name && name != "" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func keysOf(t reflect.Type) (keys []string) {
	for f := range t.Fields() {
		if k := f.Tag.Get("yaml"); k != "" {
			keys = append(keys, k)
		}
	}
	return keys
}

// leaves are the dotted paths of all keys that hold one value or a list.
func leaves() []string {
	var out []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for f := range t.Fields() {
			key := f.Tag.Get("yaml")
			switch {
			case key == "" || f.Type.Kind() == reflect.Map:
			case f.Type.Kind() == reflect.Struct:
				walk(prefix+key+".", f.Type)
			default:
				out = append(out, prefix+key)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	return out
}

// nearest is the key that differs from word by at most two changed, missing or
// added letters, "" if none does.
func nearest(word string, keys []string) string {
	best, at := "", 3
	for _, k := range keys {
		if d := distance(word, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, prev+cost)
		}
	}
	return row[len(b)]
}
