package main

import (
	"go/ast"
	"go/token"
	"go/types"
	"os"
	"strings"

	"github.com/golangci/misspell"
	"github.com/golangci/unconvert"
	revive "github.com/mgechev/revive/lint"
	"github.com/mgechev/revive/rule"
	"golang.org/x/tools/go/analysis"
	"honnef.co/go/tools/unused"
)

// sleeping: inside a bubble of synctest a sleep costs nothing and is exact; one helper of the package sleeps there and says so.
var sleeping = &analysis.Analyzer{
	Name: "sleeping",
	Doc:  "tests wait for what they need and do not sleep",
	Run: func(pass *analysis.Pass) (any, error) {
		for _, file := range pass.Files {
			if !strings.HasSuffix(pass.Fset.File(file.Pos()).Name(), "_test.go") {
				continue // pauses between tries are what a program does
			}
			ast.Inspect(file, func(node ast.Node) bool {
				name, is := node.(*ast.Ident)
				if !is {
					return true
				}
				if function, is := pass.TypesInfo.Uses[name].(*types.Func); is && function.FullName() == "time.Sleep" {
					pass.Reportf(name.Pos(), "a test that sleeps is slow or flaky: use testing/synctest (and one helper that sleeps in its bubble), or wait for the event itself with a deadline")
				}
				return true
			})
		}
		return nil, nil
	},
}

var unusedCode = &analysis.Analyzer{
	Name:     "U1000",
	Doc:      "code that nothing uses",
	Requires: []*analysis.Analyzer{unused.Analyzer.Analyzer},
	Run: func(pass *analysis.Pass) (any, error) {
		result := pass.ResultOf[unused.Analyzer.Analyzer].(unused.Result)
		used := map[token.Position]bool{}
		for _, object := range result.Used {
			used[object.Position] = true
		}
		for _, object := range result.Unused {
			if !used[object.Position] && object.Kind != "type param" {
				reportAt(pass, object.Position, object.Kind+" "+object.Name+" is unused")
			}
		}
		return nil, nil
	},
}

// conversions to the type that a value has already.
var conversions = &analysis.Analyzer{
	Name: "unconvert",
	Doc:  "conversions to the type that a value has already",
	Run: func(pass *analysis.Pass) (any, error) {
		for _, at := range unconvert.Run(pass) {
			reportAt(pass, at, "this conversion changes nothing")
		}
		return nil, nil
	},
}

var spelling = &analysis.Analyzer{
	Name: "misspell",
	Doc:  "words that are often spelled wrong",
	Run: func(pass *analysis.Pass) (any, error) {
		replacer := misspell.New()
		replacer.Compile()
		for _, file := range pass.Files {
			name := pass.Fset.File(file.Pos()).Name()
			content, err := pass.ReadFile(name)
			if err != nil {
				return nil, err
			}
			_, differences := replacer.ReplaceGo(string(content))
			for _, d := range differences {
				reportAt(pass, token.Position{Filename: name, Line: d.Line, Column: d.Column + 1}, d.Original+" is a misspelling of "+d.Corrected)
			}
		}
		return nil, nil
	},
}

// comments runs those rules of revive that hold here.
var comments = &analysis.Analyzer{
	Name: "revive",
	Doc:  "comments of exported names and of packages, names and texts of errors, where a context stands",
	Run: func(pass *analysis.Pass) (any, error) {
		if !isOurs(pass) {
			return nil, nil
		}
		rules := []revive.Rule{&rule.ExportedRule{}, &rule.PackageCommentsRule{}, &rule.ContextAsArgumentRule{}, &rule.ErrorNamingRule{},
			&rule.ErrorStringsRule{}, &rule.VarDeclarationsRule{}}
		settings := revive.Config{Confidence: 0.8, Rules: revive.RulesConfig{}}
		for _, r := range rules {
			settings.Rules[r.Name()] = revive.RuleConfig{}
			if configurable, is := r.(revive.ConfigurableRule); is {
				var arguments revive.Arguments
				if r.Name() == "exported" {
					// A row of constants explains each of them at the end of its line.
					arguments = revive.Arguments{"disableChecksOnConstants"}
				}
				if err := configurable.Configure(arguments); err != nil {
					return nil, err
				}
			}
		}
		var files []string
		for _, file := range pass.Files {
			files = append(files, pass.Fset.File(file.Pos()).Name())
		}
		linter := revive.New(os.ReadFile, 0)
		failures, err := linter.Lint([][]string{files}, rules, settings)
		if err != nil {
			return nil, err
		}
		for failure := range failures {
			if failure.Confidence >= settings.Confidence {
				reportAt(pass, failure.Position.Start, failure.Failure)
			}
		}
		return nil, nil
	},
}

// reportAt reports what was found at a place that is known by file and line.
func reportAt(pass *analysis.Pass, at token.Position, message string) {
	for _, file := range pass.Files {
		if f := pass.Fset.File(file.Pos()); f.Name() == at.Filename {
			position := f.LineStart(min(max(at.Line, 1), f.LineCount()))
			if at.Column > 1 {
				position += token.Pos(at.Column - 1)
			}
			pass.Report(analysis.Diagnostic{Pos: position, Message: message})
			return
		}
	}
}
