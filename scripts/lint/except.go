package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"golang.org/x/tools/go/analysis"
)

const ours = "github.com/tidings-go/tidings"

// isOurs tells whether a package is one of this repository. Of the others only facts are asked, and not those that take long to find.
func isOurs(pass *analysis.Pass) bool {
	path := pass.Pkg.Path()
	return path == ours || strings.HasPrefix(path, ours+"/") || strings.HasPrefix(path, ours+".") || strings.HasPrefix(path, ours+"_test")
}

var (
	exception = regexp.MustCompile(`^//\s*nolint\b(?::([a-z,]+))?(.*)$`)
	reason    = regexp.MustCompile(`^ // \S`)
	closing   = regexp.MustCompile(`\.Close\(`)
)

// onlyOurs keeps staticcheck from building the intermediate form of the packages of others, which takes longer than all the rest. Lost
// are its facts about their functions: which never return nil, and which do nothing but compute their result.
func onlyOurs(a *analysis.Analyzer, seen map[*analysis.Analyzer]bool) {
	if seen[a] {
		return
	}
	seen[a] = true
	for _, needed := range a.Requires {
		onlyOurs(needed, seen)
	}
	if run := a.Run; a.Name == "buildir" {
		a.Run = func(pass *analysis.Pass) (any, error) {
			if !isOurs(pass) {
				return reflect.New(a.ResultType.Elem()).Interface(), nil
			}
			return run(pass)
		}
	}
}

// excepting makes an analyzer keep silent about generated files, about lines that say `//nolint:name // reason`, and about what the
// rules below leave out.
func excepting(name string, a *analysis.Analyzer) *analysis.Analyzer {
	run := a.Run
	a.Run = func(pass *analysis.Pass) (any, error) {
		if !isOurs(pass) && len(a.FactTypes) == 0 {
			// Its findings would not be told, though the driver runs all that uses facts.
			if a.ResultType != nil {
				return reflect.Zero(a.ResultType).Interface(), nil
			}
			return nil, nil
		}
		lines := map[string]map[int]string{} // file, line, names
		for _, file := range pass.Files {
			lines[pass.Fset.File(file.Pos()).Name()] = exceptedLines(pass.Fset, file)
		}
		report := pass.Report
		pass.Report = func(d analysis.Diagnostic) {
			at := pass.Fset.PositionFor(d.Pos, false)
			names, known := lines[at.Filename]
			if !known && strings.HasSuffix(at.Filename, ".go") || has(names[at.Line], name) || names[0] == generated || leftOut(pass, name, at) {
				return
			}
			d.Message = fmt.Sprintf("%s (%s)", d.Message, named(name, a.Name))
			report(d)
		}
		return run(pass)
	}
	return a
}

func named(name, analyzer string) string {
	if name == analyzer {
		return name
	}
	return name + " " + analyzer
}

const generated = "generated"

// exceptedLines gives the names of each line's exception, and those of the whole file under 0.
func exceptedLines(files *token.FileSet, file *ast.File) map[int]string {
	lines := map[int]string{}
	if ast.IsGenerated(file) {
		lines[0] = generated
	}
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if found := exception.FindStringSubmatch(comment.Text); found != nil {
				lines[files.Position(comment.Pos()).Line] = found[1]
			}
		}
	}
	return lines
}

func has(names, name string) bool { return strings.Contains(","+names+",", ","+name+",") }

// leftOut are rules of where a check does not apply.
func leftOut(pass *analysis.Pass, name string, at token.Position) bool {
	test := strings.HasSuffix(at.Filename, "_test.go")
	switch name {
	case "sqlclosecheck":
		// Statements that are kept are open as long as their database.
		return strings.HasSuffix(filepath.ToSlash(at.Filename), "store/internal/sqlstore/prepared.go")
	case "errcheck":
		// Closing at the end of a test: its failure would say nothing about what the test is for.
		return test && closing.MatchString(line(pass, at))
	}
	return false
}

func line(pass *analysis.Pass, at token.Position) string {
	content, err := pass.ReadFile(at.Filename)
	if err != nil {
		return ""
	}
	lines := strings.Split(string(content), "\n")
	if at.Line < 1 || at.Line > len(lines) {
		return ""
	}
	return lines[at.Line-1]
}

// exceptions holds that every exception names its check and says why.
var exceptions = &analysis.Analyzer{
	Name: "nolintlint",
	Doc:  "an exception names its check and its reason: //nolint:name // reason",
	Run: func(pass *analysis.Pass) (any, error) {
		for _, file := range pass.Files {
			for _, group := range file.Comments {
				for _, comment := range group.List {
					found := exception.FindStringSubmatch(comment.Text)
					if found != nil && (found[1] == "" || !reason.MatchString(found[2])) {
						pass.Reportf(comment.Pos(), "an exception names its check and its reason: //nolint:name // reason (nolintlint)")
					}
				}
			}
		}
		return nil, nil
	},
}
